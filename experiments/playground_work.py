"""Answering a question of the playground: students speak in a child process, the teacher through its endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from django.conf import settings

from experiments.errand_runner import ErrandPulse
from experiments.models import Answer, Errand, Question, Speaker
from experiments.services import playground
from experiments.services.durable import durably
from experiments.services.endpoints import live_endpoints
from experiments.services.playground import PlaygroundCalls
from experiments.states import Queue
from trainer.addresses import AddressGuard
from trainer.config import RunConfig
from trainer.endpoints import open_roles
from trainer.errors import Cancelled, ConfigError, TrainerError
from trainer.launch import Event, run_child
from trainer.records import Instruction, Response

STOPPED = "Stopped while it answered. What was said so far stays."


def answer(errand: Errand, pulse: ErrandPulse) -> dict[str, Any]:
    """Let the students speak, or the teacher, by the queue of the errand. Raises TrainerError."""
    answers = list(errand.answers.select_related("question__checkpoint__iteration__run", "checkpoint"))
    if not answers:
        return {}
    if errand.queue == Queue.TEACHER:
        return _ask_teacher(answers[0], pulse)
    return _let_students_speak(answers, pulse)


# Students


def _let_students_speak(answers: list[Answer], pulse: ErrandPulse) -> dict[str, Any]:
    """One child process for all of them. Raises ConfigError where the checkpoint asked could not speak."""
    question, by_speaker = answers[0].question, {row.speaker: row for row in answers}
    failures: dict[str, str] = {}

    def on_event(event: Event) -> None:
        row = by_speaker.get(event.get("speaker", ""))
        if row is None:
            return
        match event["event"]:
            case "loading":
                pulse.tell(f"loading the {row.get_speaker_display().lower()}")
            case "growing":
                pulse.tell("")
                durably(lambda: playground.keep_growing(row, event["text"], tokens=event["tokens"], seconds=event["seconds"]))
            case "said" if "failure" in event:
                failures[row.speaker] = event["failure"]
                durably(lambda: playground.keep_failure(row, event["failure"]))
            case "said":
                durably(lambda: playground.keep_said(row, event["text"], tokens=event["tokens"], seconds=event["seconds"]))

    run_child(_task(question, answers), on_event=on_event, should_stop=lambda: pulse.cancelled, module="trainer.playground")
    if Speaker.CHECKPOINT in failures:
        raise ConfigError(failures[Speaker.CHECKPOINT])
    return {}


def _task(question: Question, answers: list[Answer]) -> dict[str, Any]:
    return {
        "config": question.checkpoint.iteration.run.config,
        "text": question.text,
        "temperature": question.temperature,
        "max_new_tokens": question.max_new_tokens,
        "seed": question.seed,
        "speakers": [(row.speaker, _weights(row)) for row in answers],
    }


def _weights(row: Answer) -> str | None:
    """Where the speaker's weights are; None for the base student. Raises ConfigError where they were deleted meanwhile."""
    if row.speaker == Speaker.BASE:
        return None
    if row.checkpoint is None or row.checkpoint.deleted_at is not None:
        raise ConfigError(f"The files of the {row.get_speaker_display().lower()} were deleted meanwhile. Ask without it.")
    return str(settings.LIONWEB_DATA / row.checkpoint.path)


# The teacher


def _ask_teacher(row: Answer, pulse: ErrandPulse) -> dict[str, Any]:
    """Ask as the run asks: its endpoint, prompt and settings, under its budget. An answer that is stored is not paid for again."""
    frozen = row.question.checkpoint.iteration.run.run_config()
    config = replace(frozen, endpoints=live_endpoints(frozen))
    response, from_store = asyncio.run(_cancellable(_respond(config, row.question), pulse))
    if response.failure:
        playground.keep_failure(row, response.failure)
        raise TrainerError(response.failure)
    durably(lambda: playground.keep_said(row, response.text, tokens=response.tokens, completion_id=response.completion))
    return {"from_store": from_store}


async def _respond(config: RunConfig, question: Question) -> tuple[Response, bool]:
    """The teacher's response, and whether it came from the store. Nothing here waits for a batch."""
    name = config.teacher.endpoint
    alone = replace(  # no other endpoint is opened, nor its key asked for
        config,
        teacher=replace(config.teacher, batch=False),
        referee=replace(config.referee, endpoint=name),
        generator=replace(config.generator, endpoint=name),
    )
    async with open_roles(
        alone,
        PlaygroundCalls(alone, question),
        offline_url=f"http://127.0.0.1:{settings.LIONWEB_OFFLINE_PORT}/v1",
        guard=AddressGuard.from_settings(settings.LIONWEB_PRIVATE_HOSTS),
    ) as roles:
        response = await roles.teacher.respond(Instruction(key="question", text=question.text))
        return response, not any(endpoint.asked for endpoint in roles.endpoints.values())


async def _cancellable(work: Coroutine[Any, Any, tuple[Response, bool]], pulse: ErrandPulse) -> tuple[Response, bool]:
    """Cancelled once: a call on its way is waited for and kept, since it is paid. Raises Cancelled."""
    task = asyncio.ensure_future(work)
    while not task.done() and not pulse.cancelled:
        await asyncio.wait({task}, timeout=0.25)
    if not task.done():
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        raise Cancelled(STOPPED) from None
