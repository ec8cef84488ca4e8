"""Copies of checkpoints in a team's storage: a shared folder or a bucket, by its fsspec URL. A copy counts once its bytes were read back.

Who may read and write there is the environment's to say (for s3:// the variables of its SDK): no URL holds a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.checkpoints import MANIFEST, SPARE_BYTES, file_digest, read_checkpoint, require_whole, writing_whole
from trainer.errors import Cancelled, ConfigError, TrainerError

CHUNK_BYTES = 8 * 2**20

Stop = Callable[[], bool]
Tell = Callable[[str], None]


def store(checkpoint: Path, url: str, *, should_stop: Stop, tell: Tell) -> None:
    """Copy a checkpoint to the URL of its own folder, read every file back and compare its sha256; the manifest goes last.

    Raises ConfigError for a damaged checkpoint or a URL that cannot be used, Cancelled, TrainerError where the storage fails.
    """
    tell("checking the files")
    manifest = require_whole(checkpoint)
    names = [*sorted(manifest.files), MANIFEST]
    with _storage_errors(url):
        system, root = _system(url)
        for at, name in enumerate(names, start=1):
            tell(f"copying file {at} of {len(names)}")
            target = f"{root}/{name}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            with (checkpoint / name).open("rb") as source, system.open(target, "wb") as sink:
                written = _copy(source, sink, should_stop)
            with system.open(target, "rb") as back:
                if _copy(back, None, should_stop) != written:
                    raise TrainerError(f"The copy of {name} in the storage is not what was sent: its sha256 differs. Ask again.")


def mark_of(checkpoint: Path) -> str:
    """What tells a checkpoint's copy from every other's that may lie beside it: 16 digits of its manifest's sha256.

    Raises ConfigError where there is no checkpoint.
    """
    read_checkpoint(checkpoint)
    return file_digest(checkpoint / MANIFEST)[:16]


def bring_back(url: str, checkpoint: Path, *, files: Mapping[str, str], size: int, should_stop: Stop, tell: Tell) -> None:
    """Restore a checkpoint's folder from its copy, whole and checked, or not at all.

    files: name -> sha256 as the checkpoint was made with; size: bytes it takes.

    Raises ConfigError where the copy is not there or not what was stored, NoSpace, Cancelled.
    """
    with _storage_errors(url):
        system, root = _system(url)
        with writing_whole(checkpoint, needed=size + SPARE_BYTES) as folder:
            _fetch(system, f"{root}/{MANIFEST}", folder / MANIFEST, should_stop)
            if read_checkpoint(folder).files != files:
                raise ConfigError(f"The copy at {url} is of another checkpoint: its sha256s differ. Nothing was changed here.")
            for at, name in enumerate(sorted(files), start=1):
                tell(f"bringing back file {at} of {len(files)}")
                _require_plain(name)
                _fetch(system, f"{root}/{name}", folder / name, should_stop)
            tell("checking the files")
            require_whole(folder)


def require_url(url: str) -> None:
    """Raise ConfigError for a storage URL that names nothing or holds a key."""
    parts = urlsplit(url)
    if not parts.scheme or not (parts.netloc or parts.path.strip("/")):
        raise ConfigError(f"LIONWEB_STORAGE_URL must be an fsspec URL such as s3://bucket/folder or file:///mnt/share, not {url!r}.")
    if parts.username or parts.password or parts.query:
        raise ConfigError("LIONWEB_STORAGE_URL must not hold a key or a query: give keys to the worker's environment.")


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    system, root = fsspec.core.url_to_fs(url)
    return system, str(root).rstrip("/")


def _fetch(system: Any, source: str, target: Path, should_stop: Stop) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with system.open(source, "rb") as stream, target.open("wb") as sink:
        _copy(stream, sink, should_stop)


def _copy(source: Any, sink: Any, should_stop: Stop) -> str:
    """Read to the end, a piece at a time, writing to `sink` if there is one; gives the sha256."""
    digest = hashlib.sha256()
    while piece := source.read(CHUNK_BYTES):
        if should_stop():
            raise Cancelled("Stopped while files were copied. What was there before is as it was.")
        digest.update(piece)
        if sink is not None:
            sink.write(piece)
    return digest.hexdigest()


def _require_plain(name: str) -> None:
    if name.startswith("/") or ".." in Path(name).parts:
        raise ConfigError(f"The copy's {MANIFEST} lists a file that cannot be one of a checkpoint's: {name!r}.")


@contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    """What a storage's library says, as one sentence."""
    require_url(url)
    try:
        yield
    except TrainerError:
        raise
    except ImportError:
        raise ConfigError(f"Nothing installed reaches {urlsplit(url).scheme}:// (s3:// needs s3fs). Install it for the worker.") from None
    except FileNotFoundError as error:
        raise ConfigError(f"There is no copy at {url}: something of it is missing.") from error
    except Exception as error:
        told = (str(error).strip().splitlines() or [""])[0][:300]
        raise TrainerError(f"The storage failed ({type(error).__name__}: {told}). Look at it, then ask again.") from error
