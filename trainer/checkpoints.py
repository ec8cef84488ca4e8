"""Checkpoints on disk: written whole or not at all, with everything that made them beside the weights.

A checkpoint is a folder with the weights (safetensors), the tokenizer and `lionweb.json`: the config, iteration, step, losses, seed,
library versions, the parent checkpoint and the sha256 of every other file. It is written under a temporary name and renamed when
it is complete, so a folder with the final name is always a whole checkpoint. Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config import SCRATCH_MODEL, RunConfig, endpoint_of, stored_config
from trainer.errors import ConfigError, DamagedCheckpoint, NoSpace
from trainer.prompts import PROMPT_VERSION, STRUCTURED_PROMPT_VERSION
from trainer.roles import CheckpointInfo

MANIFEST = "lionweb.json"
"""The file that says what a checkpoint is; the last one written, so a folder without it is not a checkpoint."""

SPARE_BYTES = 16 * 2**20
"""What a checkpoint needs beside its weights: tokenizer, configs, the file system's own needs."""

MEND_CHECKPOINT = "Restore it from the team's storage or another copy, or launch a new run."
"""What to do about a checkpoint that is damaged."""

_FULL_DISK_WORDS = ("no space left", "os error 28", "disk quota exceeded", "pytorchstreamwriter failed")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `lionweb.json` holds.

    parent: the checkpoint the tuning started from, empty for the base student; parent_digest: its `digest`.
    base, revision: the model an adapter belongs on (method lora), or that the full weights come from.
    work: fingerprint of all that decided the weights, so that a finished imitation is recognised instead of repeated.
    files: name -> sha256 of every file but this one.
    """

    config: dict[str, Any]
    method: str
    base: str
    revision: str
    iteration: int
    step: int
    first_loss: float
    last_loss: float
    seed: int
    parent: str = ""
    parent_digest: str = ""
    work: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One sha256 for the whole content: equal when every file is equal."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def must_merge(self) -> bool:
        """Whether it is of use elsewhere once merged alone: an adapter on random weights, which no disk and no Hub has."""
        return self.method != "full" and self.base == SCRATCH_MODEL

    def info(self, path: Path) -> CheckpointInfo:
        """The short form that the loop passes around."""
        return CheckpointInfo(path=path, step=self.step, first_loss=self.first_loss, last_loss=self.last_loss)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds the folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, *, purpose: str = "A checkpoint") -> None:
    """Raise NoSpace unless `needed` bytes are free where the folder is."""
    free = free_bytes(folder)
    if free < needed:
        raise NoSpace(
            f"{purpose} needs {readable_size(needed)} in {folder}, where {readable_size(free)} is free. "
            "Free some space or let the checkpoints go to a larger disk, then start the stage again."
        )


def readable_size(size: float) -> str:
    """A size in bytes as text, in powers of 1,024 as everywhere: 2.50 GiB, 31 MiB, 4 KiB, 512 bytes."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    unit, name = next((unit, name) for unit, name in ((2**20, "MiB"), (2**10, "KiB"), (1, "bytes")) if size >= unit or unit == 1)
    return f"{size / unit:.0f} {name}"


def is_full_disk(error: BaseException) -> bool:
    """Whether an error of any of the libraries that write weights means that the disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(word in str(error).lower() for word in _FULL_DISK_WORDS)


@contextmanager
def writing_whole(final: Path, *, needed: int) -> Iterator[Path]:
    """A folder to write to that takes the name `final` when the block ends well, and vanishes when it does not.

    needed: bytes that will be written, asked for before the first one is.
    Raises NoSpace where the disk is, or runs, full. An older folder of the final name is replaced.
    """
    from safetensors import SafetensorError

    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = final.with_name(f".{final.name}.writing")
    shutil.rmtree(unfinished, ignore_errors=True)
    require_space(final.parent, needed)
    try:
        unfinished.mkdir()
        yield unfinished
        _sync(unfinished)
        _take_place(unfinished, final)
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_full_disk(error):
            raise NoSpace(
                f"The disk ran full while {final} was written: it needs {readable_size(needed)}. "
                "Nothing half written was left. Free some space, then start the stage again."
            ) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Give a disk that runs full while something small is written its name."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not is_full_disk(error):
            raise
        raise NoSpace(f"The disk of {folder} is full. Free some space, then start the stage again.") from error


def _sync(folder: Path) -> None:
    """Flush every file, so that the new name never points to data a power cut can lose.

    Files also get the folder's own rights: safetensors makes its files unreadable for anyone else, the web server included.
    """
    rights = folder.stat().st_mode & 0o666
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        path.chmod(rights)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _take_place(unfinished: Path, final: Path) -> None:
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    unfinished.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def write_checkpoint(path: Path, manifest: Manifest, save: Callable[[Path], None], *, weight_bytes: int) -> Manifest:
    """Write a checkpoint: `save` puts weights and tokenizer into the folder it is given, the manifest goes last.

    weight_bytes: estimated size of the weights. Gives the manifest with versions and file digests filled in.
    Raises NoSpace; then nothing is left at `path`, or what was there before.
    """
    with writing_whole(path, needed=weight_bytes + SPARE_BYTES) as folder:
        save(folder)
        versions = library_versions() | prompt_versions(stored_config(manifest.config))
        complete = replace(manifest, versions=versions, files=digests_of(folder))
        text = json.dumps(asdict(complete), indent=2, ensure_ascii=False, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return complete


def read_checkpoint(path: Path) -> Manifest:
    """The manifest of a checkpoint. Raises ConfigError where there is none, DamagedCheckpoint where it cannot be read."""
    try:
        data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        known = {f.name for f in fields(Manifest)}
        return Manifest(**{name: value for name, value in data.items() if name in known})
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"There is no checkpoint at {path}: {MANIFEST} is missing. Choose another, or launch a new run.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path / MANIFEST} cannot be read: {error}. {MEND_CHECKPOINT}") from None


def find_checkpoint(path: Path) -> Manifest | None:
    """The manifest of the checkpoint at `path`, or None where there is none."""
    return read_checkpoint(path) if (path / MANIFEST).is_file() else None


def verify_checkpoint(path: Path) -> list[str]:
    """What is wrong with a checkpoint, a sentence each; an empty list when every file is as it was written."""
    try:
        manifest = read_checkpoint(path)
    except ConfigError as error:
        return [str(error)]
    problems = []
    for name, digest in sorted(manifest.files.items()):
        if not (path / name).is_file():
            problems.append(f"{name} is missing.")
        elif file_digest(path / name) != digest:
            problems.append(f"{name} is not what was written: its sha256 differs.")
    if not any(name.endswith(".safetensors") for name in manifest.files):
        problems.append("There are no weights: no safetensors file is listed.")
    return problems


def require_whole(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all as they were written. Raises DamagedCheckpoint that names what is not."""
    problems = verify_checkpoint(path)
    if problems:
        raise DamagedCheckpoint(f"The checkpoint {path} is damaged: {' '.join(problems)} {MEND_CHECKPOINT}")
    return read_checkpoint(path)


def require_loadable(path: Path) -> Manifest:
    """The same, and where the checkpoint is an adapter on another checkpoint, of that one too."""
    manifest = require_whole(path)
    base = Path(manifest.base)
    if manifest.method != "full" and base.is_absolute():
        if find_checkpoint(base):
            require_whole(base)
        elif not base.is_dir():
            raise ConfigError(f"{base}, which the adapter {path} is on, is not there any more. Bring it back, or launch a new run.")
    return manifest


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(folder: Path, *, leave_out: str = "") -> dict[str, str]:
    """name -> sha256 of every file in a folder but the one left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {name: file_digest(path) for path in files if (name := str(path.relative_to(folder))) != leave_out}


def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide the weights, without importing any of them."""
    return {name: metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate", "safetensors")}


def prompt_versions(config: RunConfig) -> dict[str, str]:
    """The version of the texts that teacher and students read, and of those of the roles that may be asked for JSON."""
    versions = {"prompts": PROMPT_VERSION}
    for role in ("referee", "generator"):
        structured = config.endpoints[endpoint_of(config, role)].structured != "text"
        versions[f"{role}_prompts"] = STRUCTURED_PROMPT_VERSION if structured else PROMPT_VERSION
    return versions
