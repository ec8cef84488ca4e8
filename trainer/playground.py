"""One question, answered by several students one after another: `python -m trainer.playground TASK`, started by `trainer.launch`.

Prompt, sampling and text are those of `trainer.speaker`: the same seed gives what the student would say in a stage. What is new is
that its text is told while it grows. Speaks with its parent as `trainer.child` does, and ends with it.

Task: {"config", "text", "temperature", "max_new_tokens", "seed", "speakers": [[name, path of a checkpoint or null for the base]]}.
Events: loading, growing and said, each with the "speaker"; last one of finished, stopped, failed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainer.child import Emit, public_name, read_lines, take_stdout, watch_launcher, watch_parent
from trainer.config import RunConfig, stored_config
from trainer.encoding import encode_prompts
from trainer.errors import Cancelled, ConfigError, TrainerError
from trainer.models import memory_errors
from trainer.records import Instruction
from trainer.speaker import Speaker, load_speaker, never
from trainer.text import storable

if TYPE_CHECKING:
    import torch

TELL_EVERY_S = 0.25
"""How often growing text is told."""

HALF_A_LETTER = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no letter yet."""


def main() -> NoReturn:
    """Do the task that the argument names and end the process."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    emit = take_stdout()
    stop = threading.Event()
    threading.Thread(target=watch_parent, args=(read_lines(0), stop), daemon=True).start()
    threading.Thread(target=watch_launcher, args=(os.getppid(),), daemon=True).start()
    emit(outcome(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), emit, stop.is_set))
    sys.stderr.flush()
    os._exit(0)  # everything is told: the libraries' own teardown would only take time


def outcome(task: dict[str, Any], emit: Emit, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Let everybody speak and give the last event."""
    try:
        speak_in_turn(task, emit, should_stop=should_stop)
    except Cancelled as error:
        return {"event": "stopped", "message": str(error)}
    except TrainerError as error:
        return {"event": "failed", "error": public_name(error), "message": str(error)}
    return {"event": "finished"}


def speak_in_turn(task: dict[str, Any], emit: Emit, *, should_stop: Callable[[], bool] = never) -> None:
    """Load each speaker, let it answer, and forget it again. One that cannot speak says why, and the next has its turn.

    Raises ConfigError for a config this version cannot read, Cancelled when asked to stop.
    """
    config = stored_config(task["config"])
    for name, path in task["speakers"]:
        emit({"event": "loading", "speaker": name})
        tell = partial(_tell, emit, name)
        try:
            with memory_errors("this student. Wait until the device is free, or use one with more memory."):
                tell("said", **speak(config, Path(path) if path else None, task, partial(tell, "growing"), should_stop))
        except Cancelled:
            raise
        except TrainerError as error:
            tell("said", failure=str(error))


def _tell(emit: Emit, speaker: str, event: str, **values: Any) -> None:
    emit({"event": event, "speaker": speaker, **values})


def speak(
    config: RunConfig, start: Path | None, task: dict[str, Any], tell_growing: Callable[..., None], should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """One speaker's answer: its text, tokens, and the seconds it took once the student was loaded."""
    speaker = load_speaker(config, start)
    if should_stop():
        raise Cancelled("Stopped before it began to speak.")
    started = time.monotonic()

    def on_text(text: str, tokens: int) -> None:
        tell_growing(text=text, tokens=tokens, seconds=time.monotonic() - started)

    text, tokens = answer(
        speaker,
        task["text"],
        template=config.student.template,
        temperature=task["temperature"],
        max_new_tokens=task["max_new_tokens"],
        seed=task["seed"],
        on_text=on_text,
        should_stop=should_stop,
    )
    return {"text": text, "tokens": tokens, "seconds": time.monotonic() - started}


def answer(
    speaker: Speaker,
    text: str,
    *,
    template: str,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    on_text: Callable[[str, int], None],
    should_stop: Callable[[], bool] = never,
) -> tuple[str, int]:
    """What the speaker says and in how many tokens; `on_text` is told the text so far and its tokens, a few times a second.

    Raises ConfigError where the prompt leaves no room for an answer, Cancelled when asked to stop.
    """
    prompt = encode_prompts(speaker.tokenizer, [Instruction(key="question", text=text)], template=template)[0]
    if len(prompt) >= speaker.context:
        raise ConfigError(
            f"The question is {len(prompt):,} tokens long for this student, which reads at most {speaker.context - 1:,}. Shorten it."
        )
    listener = Listener(speaker, on_text)
    overheard = replace(speaker, model=Overheard(speaker.model, listener))
    ((said, tokens),) = overheard.generate(
        [prompt], max_new_tokens=max_new_tokens, temperature=temperature, seeds=[seed], should_stop=should_stop
    )
    return said, tokens


class Listener:
    """Hears each token as it is drawn, and tells the text so far. A `transformers` streamer."""

    def __init__(self, speaker: Speaker, on_text: Callable[[str, int], None], *, every_s: float = TELL_EVERY_S) -> None:
        self._speaker = speaker
        self._on_text = on_text
        self._every_s = every_s
        self._ids: list[int] = []
        self._heard_prompt = False
        self._told_at = 0.0

    def put(self, ids: torch.Tensor) -> None:
        """ids: the prompt at first (1, T), then a new token (1,) at a time."""
        if not self._heard_prompt:
            self._heard_prompt = True
            return
        self._ids += [token for token in ids.flatten().tolist() if token not in self._speaker.stop_ids]
        if time.monotonic() - self._told_at >= self._every_s:
            self._on_text(text_so_far(self._speaker.tokenizer, self._ids), len(self._ids))
            self._told_at = time.monotonic()

    def end(self) -> None:
        """Nothing is left to tell: whoever listens gets the whole text."""


class Overheard:
    """A model whose `generate` is listened to; in all else the model itself."""

    def __init__(self, model: Any, listener: Listener) -> None:
        self._model = model
        self._listener = listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *inputs: Any, **options: Any) -> Any:
        return self._model.generate(*inputs, streamer=self._listener, **options)


def text_so_far(tokenizer: Any, ids: list[int]) -> str:
    """The text of the tokens as far as its last letter is whole."""
    return storable(tokenizer.decode(ids, skip_special_tokens=True)).rstrip(HALF_A_LETTER).lstrip()


if __name__ == "__main__":
    main()
