"""Serving a checkpoint with vLLM: the command as data, and a server of our own for the time of a stage.

vLLM pins a torch of its own and is installed beside us, not with us: all we need is its executable on the PATH. Imports no torch.
"""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer import guarded
from trainer.checkpoints import Manifest
from trainer.config import SCRATCH_MODEL
from trainer.errors import Cancelled, ChildDied, ConfigError, OutOfMemory, TeacherUnavailable

logger = logging.getLogger(__name__)

SERVED_NAME = "student"
HOST = "127.0.0.1"
START_S = 1800.0
"""Loading a large model from a network disk and compiling it takes its time."""
KILL_S = guarded.END_S + 5.0
"""After so long the guard itself is killed, with all that is left of the server."""
POLL_S = 0.25
LAST_LINES = 15
ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank takes."""
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def vllm_command(
    model: Path | str, manifest: Manifest | None, port: int, *, host: str = HOST, revision: str = "", precision: str = ""
) -> list[str]:
    """The arguments that serve a checkpoint, for a process or (by shlex.join) for a person. The model is called `student` there.

    model: the checkpoint's folder, or the Hub name of a student without one (manifest None). An adapter is served on the base that its
    manifest names. --generation-config vllm keeps the model's own sampling defaults out, as we do.
    Raises ConfigError for an adapter whose base vLLM could not get: it has to be merged first.
    """
    if manifest is not None and manifest.must_merge:
        raise ConfigError(f"vLLM cannot serve this adapter: its base, {SCRATCH_MODEL}, is nowhere on disk. Serve the merged weights.")
    adapter = manifest is not None and manifest.method != "full"
    served = manifest.base if manifest and adapter else str(model)
    revision = manifest.revision if manifest and adapter else revision
    command = ["vllm", "serve", served, "--host", host, "--port", str(port), "--generation-config", "vllm"]
    precision = precision or (str(manifest.config.get("student", {}).get("precision", "")) if manifest else "")
    command += ["--dtype", DTYPES[precision]] if precision in DTYPES else []
    command += ["--revision", revision] if revision else []
    if not adapter:
        return [*command, "--served-model-name", SERVED_NAME]
    return [*command, "--enable-lora", "--max-lora-rank", str(_rank_of(manifest)), "--lora-modules", f"{SERVED_NAME}={model}"]


def _rank_of(manifest: Manifest | None) -> int:
    rank = int(manifest.config.get("student", {}).get("lora_rank", ADAPTER_RANKS[1])) if manifest else ADAPTER_RANKS[1]
    return next((known for known in ADAPTER_RANKS if known >= rank), rank)


def executable_of(name: str) -> str:
    """Where the server's executable is. Raises ConfigError where it is not installed."""
    executable = shutil.which(name)
    if executable is None:
        text = f"respond.server is vllm, but there is no {name} on the PATH of this worker. Install it, or leave it empty."
        raise ConfigError(text)
    return executable


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as place:
        place.bind((HOST, 0))
        return int(place.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str], port: int, *, should_stop: Callable[[], bool] = lambda: False, start_s: float = START_S
) -> Iterator[str]:
    """Start the server, wait until it lists its models, give its base URL, and end it with everything it started.

    It runs under `trainer.guarded`, so that it ends too where this process is killed.
    Raises ConfigError where vLLM is not installed or cannot serve this student, ChildDied or OutOfMemory where it ended before,
    TeacherUnavailable where it is not there in time, Cancelled.
    """
    executable = executable_of(command[0])
    if SCRATCH_MODEL in command:
        text = f"vLLM serves folders and Hub models; {SCRATCH_MODEL} has no checkpoint yet. Leave respond.server empty."
        raise ConfigError(text, fields={"respond.server": text})
    guard = [sys.executable, "-I", guarded.__file__]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*guard, executable, *command[1:]], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(process, port, output.fileno(), should_stop, start_s)
            yield f"http://{HOST}:{port}/v1"
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], port: int, output: int, should_stop: Callable[[], bool], start_s: float) -> None:
    until = time.monotonic() + start_s
    while not _is_there(port):
        if process.poll() is not None:
            raise _death(process.returncode, _last_lines(output))
        if should_stop():
            raise Cancelled("Stopped while vLLM was starting. What is kept stays kept; the stage can go on later.")
        if time.monotonic() > until:
            raise TeacherUnavailable(f"vLLM did not list its models within {start_s:g} s. Its last lines:\n{_last_lines(output)}")
        time.sleep(POLL_S)


def _is_there(port: int) -> bool:
    asked = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        asked.request("GET", "/v1/models")
        return asked.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


def _death(status: int, lines: str) -> Exception:
    if "out of memory" in lines.lower():
        return OutOfMemory(f"vLLM ran out of memory while it started. Choose a smaller student, or a larger card.\n{lines}")
    return ChildDied(f"vLLM ended with status {status} before it could answer. Its last lines:\n{lines}")


def _last_lines(output: int) -> str:
    size = os.fstat(output).st_size
    text = os.pread(output, 16_384, max(0, size - 16_384)).decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-LAST_LINES:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the guard end the server's whole process group, and kill what is left of it where it does not."""
    assert process.stdin
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILL_S)
    with suppress(ProcessLookupError):  # the group can outlive the process that led it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
