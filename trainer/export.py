"""Checkpoints in the forms other software takes: a plain Hugging Face folder, an adapter alone, a GGUF, a repository on the Hub.

Each is written whole or not at all. Whatever needs torch, a library's upload or somebody else's script happens in a process of its own
(`trainer.export_child`), which can be stopped at once and never outlives its parent.

`lionweb.json` stays behind: it holds the run's config with the addresses of endpoints and paths of this machine, which are nobody
else's business. What others should know stands in the model card.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.checkpoints import MANIFEST, SPARE_BYTES, Manifest, read_checkpoint, require_loadable, require_space, writing_whole
from trainer.config import SCRATCH_MODEL
from trainer.errors import ConfigError, TrainerError
from trainer.launch import Event, run_child
from trainer.model_card import is_hub_name

CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's script that makes a GGUF of a Hugging Face folder."""

GGUF_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
"""What the converter can store weights as."""

BYTES_A_NUMBER = {"f16": 2.0, "bf16": 2.0, "q8_0": 1.07}
"""Of the types that take less than full precision does; auto is as the weights are at most."""

CARD = "README.md"

NO_BASE = (
    f"This adapter is of no use alone: its base, {SCRATCH_MODEL}, was made from random weights and is nowhere on disk. "
    "Export the merged weights instead."
)

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_FOR_A_STRANGERS_SCRIPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")

Stop = Callable[[], bool]
Tell = Callable[[str], None]


def export_merged(checkpoint: Path, out: Path, *, card: str, should_stop: Stop, tell: Tell) -> Manifest:
    """The whole weights as a plain Hugging Face folder at `out`.

    A full checkpoint's files are linked, not copied, where the disk can: they take no space twice. An adapter is merged into its base
    in fp32 and saved in the student's precision; what that takes is asked for when the weights are known, before the first is written.
    Raises ConfigError for a damaged checkpoint, NoSpace, Cancelled, ChildDied.
    """
    manifest = _whole(checkpoint, tell)
    with writing_whole(out, needed=SPARE_BYTES + _bytes_to_copy(checkpoint, manifest, out)) as folder:
        put_merged(checkpoint, manifest, folder, should_stop=should_stop, tell=tell)
        (folder / CARD).write_text(card, encoding="utf-8")
    return manifest


def export_adapter(checkpoint: Path, out: Path, *, card: str, tell: Tell) -> Manifest:
    """The adapter and its tokenizer at `out`, to be put on the base it names.

    Raises ConfigError where the checkpoint is no adapter, or one whose base nobody can get.
    """
    manifest = _whole(checkpoint, tell)
    if manifest.method == "full":
        raise ConfigError("This checkpoint has no adapter: it was tuned whole. Export the merged weights instead.")
    if manifest.must_merge:
        raise ConfigError(NO_BASE)
    with writing_whole(out, needed=SPARE_BYTES + _bytes_to_copy(checkpoint, manifest, out)) as folder:
        link_files(checkpoint, manifest, folder)
        (folder / CARD).write_text(card, encoding="utf-8")
    return manifest


def export_gguf(checkpoint: Path, out: Path, *, name: str, stored_as: str, llama_cpp: str, should_stop: Stop, tell: Tell) -> Manifest:
    """One file `NAME-TYPE.gguf` at `out`, made by llama.cpp's converter.

    llama_cpp: the folder with the converter, as its setting gives it. Raises ConfigError where it is not there, or refuses the model.
    """
    script = converter(llama_cpp)
    if stored_as not in GGUF_TYPES:
        raise ConfigError(f"There is no GGUF type {stored_as!r}. Choose one of: {', '.join(GGUF_TYPES)}.")
    manifest = _whole(checkpoint, tell)
    with writing_whole(out, needed=SPARE_BYTES + _bytes_to_copy(checkpoint, manifest, out)) as folder:
        plain = folder / "plain"
        plain.mkdir()
        try:
            put_merged(checkpoint, manifest, plain, should_stop=should_stop, tell=tell)
            require_space(folder, _gguf_bytes(plain, stored_as), purpose="The GGUF")
            tell("converting to GGUF")
            file = folder / f"{name}-{stored_as}.gguf"
            arguments = [str(plain), "--outfile", str(file), "--outtype", stored_as]
            few = {name: os.environ[name] for name in _FOR_A_STRANGERS_SCRIPT if name in os.environ}
            _in_child({"task": "convert", "script": str(script), "arguments": arguments}, should_stop=should_stop, environment=few)
        finally:
            shutil.rmtree(plain, ignore_errors=True)
        if not file.is_file():
            raise TrainerError("llama.cpp's converter ended well and left no file. Update llama.cpp, then ask again.")
    return manifest


def push(
    checkpoint: Path, work: Path, *, repo: str, private: bool, adapter_alone: bool, card: str, should_stop: Stop, tell: Tell
) -> dict[str, Any]:
    """Upload a checkpoint to a repository on the Hub, made where there is none; gives {"url", "commit"}.

    work: a folder to prepare it in, gone afterwards. The token is HF_TOKEN's, the Hub HF_ENDPOINT's where that is set.
    Raises ConfigError where the Hub refuses the token or the name, TrainerError where it is down.
    """
    require_repo(repo)
    if not os.environ.get("HF_TOKEN"):
        raise ConfigError("No token for the Hub: set HF_TOKEN, with the right to write, for the worker of the gpu queue and restart it.")
    if adapter_alone and read_checkpoint(checkpoint).must_merge:
        raise ConfigError(NO_BASE)
    if adapter_alone and not is_hub_name(read_checkpoint(checkpoint).base):
        raise ConfigError("The base of this adapter is a folder of this machine, which nobody on the Hub has. Push the merged weights.")
    told: list[Event] = []
    try:
        if adapter_alone:
            export_adapter(checkpoint, work, card=card, tell=tell)
        else:
            export_merged(checkpoint, work, card=card, should_stop=should_stop, tell=tell)
        tell(f"uploading to {repo}")
        _in_child({"task": "push", "folder": str(work), "repo": repo, "private": private}, should_stop=should_stop, keep=told.append)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    pushed = next(event for event in told if event["event"] == "pushed")
    return {"url": pushed["url"], "commit": pushed["commit"]}


def require_repo(repo: str) -> None:
    """Raise ConfigError unless the Hub could have a repository of this name."""
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith((".git", ".", "-")):
        text = f"{repo!r} is no name of a repository. Give NAME or OWNER/NAME of letters, digits, dots, dashes and underscores."
        raise ConfigError(text, fields={"repo": text})


def converter(llama_cpp: str) -> Path:
    """The converter's script. Raises ConfigError, saying how to get it, where there is none."""
    script = Path(llama_cpp) / CONVERTER
    if llama_cpp and script.is_file():
        return script.resolve()
    where = f"There is no {CONVERTER} in {llama_cpp}." if llama_cpp else "The setting LIONWEB_LLAMA_CPP is empty."
    raise ConfigError(
        f"{where} For GGUF exports, clone llama.cpp (git clone https://github.com/ggml-org/llama.cpp) on the machine of the gpu worker, "
        "set LIONWEB_LLAMA_CPP to that folder and restart the worker."
    )


def put_merged(checkpoint: Path, manifest: Manifest, folder: Path, *, should_stop: Stop, tell: Tell) -> None:
    """Put the whole weights, the tokenizer and the configs of a checkpoint into a folder that is there."""
    if manifest.method == "full":
        link_files(checkpoint, manifest, folder)
        return
    tell("merging the adapter into its base")
    _in_child({"task": "merge", "config": manifest.config, "checkpoint": str(checkpoint), "out": str(folder)}, should_stop=should_stop)


def link_files(checkpoint: Path, manifest: Manifest, folder: Path) -> None:
    """Hard links to the files of a checkpoint, or copies where the disk knows no links."""
    for name in sorted(manifest.files):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or name == MANIFEST:
            raise ConfigError(f"{MANIFEST} lists a file that cannot be one of the checkpoint's: {name!r}. Restore it from a copy.")
        if name == CARD:
            continue  # a card is written anew, and must not be written through a link into the checkpoint
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link((checkpoint / name).resolve(), target)
        except OSError:
            shutil.copy2(checkpoint / name, target)


def _bytes_to_copy(checkpoint: Path, manifest: Manifest, out: Path) -> int:
    """What the files of a checkpoint take at `out`: nothing where they can be linked, or are merged by a child that asks for itself."""
    there = next(folder for folder in out.parents if folder.exists())
    if there.stat().st_dev == checkpoint.stat().st_dev or manifest.method != "full":
        return 0
    return sum((checkpoint / name).stat().st_size for name in manifest.files)


def _whole(checkpoint: Path, tell: Tell) -> Manifest:
    tell("checking the files")
    return require_loadable(checkpoint)


def _gguf_bytes(folder: Path, stored_as: str) -> int:
    """Bytes of a GGUF of the weights in a folder: so many for each number, by the heads of the files."""
    from safetensors import safe_open

    numbers = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            numbers += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return math.ceil(numbers * BYTES_A_NUMBER.get(stored_as, 4.0))


def _in_child(
    task: dict[str, Any],
    *,
    should_stop: Stop,
    environment: Mapping[str, str] | None = None,
    keep: Callable[[Event], None] = lambda event: None,
) -> None:
    run_child(task, on_event=keep, should_stop=should_stop, environment=environment, module="trainer.export_child")
