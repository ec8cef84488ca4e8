"""A question to several students: what they say is what they would say in a stage, told while it grows; and the process ends in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.speaking import save_student, tiny_config
from trainer.encoding import encode_prompts
from trainer.errors import Cancelled, ConfigError
from trainer.launch import Event, run_child
from trainer.models import byte_tokenizer
from trainer.playground import answer, speak_in_turn, text_so_far
from trainer.records import Instruction
from trainer.speaker import Speaker, load_speaker

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TEXT = "upper: grüße"


def make_task(*speakers: tuple[str, str | None], **changes: Any) -> dict[str, Any]:
    asked = {"text": TEXT, "temperature": 0.7, "max_new_tokens": 40, "seed": 5}
    return {"config": tiny_config().as_dict(), **asked, "speakers": list(speakers) or [("base", None)], **changes}


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return load_speaker(tiny_config(), None)


def ask(speaker: Speaker, **changes: Any) -> tuple[tuple[str, int], list[tuple[str, int]]]:
    """What is said in the end, and what was told on the way."""
    told: list[tuple[str, int]] = []
    options: dict[str, Any] = {"template": "chat", "temperature": 0.7, "max_new_tokens": 60, "seed": 5, **changes}
    said = answer(speaker, options.pop("text", TEXT), on_text=lambda text, tokens: told.append((text, tokens)), **options)
    return said, told


@pytest.mark.parametrize("template", ["chat", "paper"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_same_seed_gives_what_the_speaker_says_in_a_stage(speaker, template, temperature):
    prompt = encode_prompts(speaker.tokenizer, [Instruction(key="i", text=TEXT)], template=template)[0]
    (staged,) = speaker.generate([prompt], max_new_tokens=60, temperature=temperature, seeds=[5])
    said, _ = ask(speaker, template=template, temperature=temperature)
    assert said == staged
    assert said[1] > 0


def test_another_seed_says_something_else(speaker):
    assert ask(speaker, seed=1)[0] != ask(speaker, seed=2)[0]


def test_the_text_grows_and_what_was_told_stays(speaker, monkeypatch):
    monkeypatch.setattr("trainer.playground.Listener.__init__.__kwdefaults__", {"every_s": 0.0})
    (text, tokens), told = ask(speaker, temperature=0.0)
    assert [n for _, n in told] == list(range(1, tokens + 1))
    assert all(text.startswith(so_far.rstrip()) for so_far, _ in told)
    assert len({so_far for so_far, _ in told}) > 10


def test_a_letter_is_told_once_it_is_whole():
    tokenizer = byte_tokenizer()
    ids = list("aü😀".encode())
    told = [text_so_far(tokenizer, ids[:n]) for n in range(1, len(ids) + 1)]
    assert told == ["a", "a", "aü", "aü", "aü", "aü", "aü😀"]


def test_bytes_that_are_no_letter_stay_in_the_middle():
    assert text_so_far(byte_tokenizer(), [0xFF, ord("a"), 0xC3]) == "�a"


def test_a_question_too_long_for_the_student_says_how_long(speaker):
    with pytest.raises(ConfigError, match=r"The question is 3,00\d tokens long for this student, which reads at most 2,047"):
        ask(speaker, text="a" * 3000)


def test_an_answer_can_be_stopped(speaker):
    with pytest.raises(Cancelled):
        ask(speaker, should_stop=lambda: True)


def test_one_that_cannot_speak_says_why_and_the_next_has_its_turn(tmp_path):
    events: list[Event] = []
    missing = tmp_path / "nowhere"
    speak_in_turn(make_task(("checkpoint", str(missing)), ("base", None)), events.append)
    said = {event["speaker"]: event for event in events if event["event"] == "said"}
    assert str(missing) in said["checkpoint"]["failure"]
    assert said["base"]["tokens"] > 0


def test_a_checkpoint_speaks_by_its_own_weights(tmp_path):
    folder = save_student(tmp_path / "student", seed=4)
    events: list[Event] = []
    speak_in_turn(make_task(("checkpoint", str(folder)), ("base", None), temperature=0.0), events.append)
    checkpoint, base = (event["text"] for event in events if event["event"] == "said")
    assert checkpoint == ask(load_speaker(tiny_config(seed=4), None), temperature=0.0, max_new_tokens=40)[0][0]
    assert checkpoint != base


def test_the_child_tells_loading_growing_and_said():
    events: list[Event] = []
    run_child(make_task(), on_event=events.append, should_stop=lambda: False, environment=ENVIRONMENT, module="trainer.playground")
    assert [event["event"] for event in events if event["event"] != "growing"] == ["started", "loading", "said"]
    assert events[-1]["seconds"] > 0


def test_the_child_is_stopped_in_the_middle_of_an_answer():
    events: list[Event] = []
    task = make_task(temperature=0.0, max_new_tokens=2000)
    with pytest.raises(Cancelled):
        run_child(
            task,
            on_event=events.append,
            should_stop=lambda: any(event["event"] == "growing" for event in events),
            environment=ENVIRONMENT,
            module="trainer.playground",
        )
    assert not any(event["event"] == "said" for event in events)


def test_a_config_of_another_version_is_refused_in_words():
    with pytest.raises(ConfigError):
        run_child(
            make_task(config={"nonsense": 1}),
            on_event=lambda event: None,
            should_stop=lambda: False,
            environment=ENVIRONMENT,
            module="trainer.playground",
        )


def test_the_child_ends_when_its_parent_is_gone(tmp_path):
    path = Path(tmp_path / "task.json")
    path.write_text(json.dumps(make_task(temperature=0.0, max_new_tokens=2000)))
    command = [sys.executable, "-m", "trainer.playground", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as child:
        assert child.stdin
        assert child.stdout
        while '"growing"' not in child.stdout.readline():
            pass
        child.stdin.close()
        asked_at = time.monotonic()
        assert child.wait(10) != 0
        assert time.monotonic() - asked_at < 2
