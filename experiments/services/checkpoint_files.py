"""The files of checkpoints: where they may be, how much they take, and how they are deleted.

Nothing here follows a link out of the folder it was given, and nothing outside the data folder is ever touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from django.conf import settings

from experiments.models import Checkpoint, Errand, ErrandKind
from trainer.errors import ConfigError

EXPORTS = (ErrandKind.MERGED, ErrandKind.ADAPTER, ErrandKind.GGUF)
"""The kinds of errands that leave files."""


def folder_of(checkpoint: Checkpoint) -> Path:
    """A checkpoint's folder. Raises ConfigError where its row names a place that is not below its run's folder."""
    return _below(settings.LIONWEB_DATA / "runs" / str(checkpoint.iteration.run_id), settings.LIONWEB_DATA / checkpoint.path)


def exports_of(checkpoint_id: int) -> Path:
    """Where the exports of a checkpoint are."""
    return _below(settings.LIONWEB_DATA / "exports", settings.LIONWEB_DATA / "exports" / str(checkpoint_id))


def export_folder(errand: Errand) -> Path:
    """Where an errand leaves its files: named by ids and its kind, never by what anybody typed."""
    return exports_of(errand.checkpoint_id) / f"{ErrandKind(errand.kind).value}-{errand.pk}"


def saves_of(run_id: int) -> Iterator[tuple[int, Path]]:
    """(iteration, folder) of the resumable saves that a run has on the disk; what a link leads to is none."""
    parent = settings.LIONWEB_DATA / "runs" / str(run_id)
    for folder in sorted((parent / "checkpoints").glob(".iteration-*.work")):
        number = folder.name.removeprefix(".iteration-").removesuffix(".work")
        if number.isdecimal() and folder.is_dir() and folder.resolve() == folder:
            yield int(number), folder


def _below(parent: Path, folder: Path) -> Path:
    """The folder, if it is strictly below the parent in the data folder, and no link lies on the way to it."""
    parent_there = parent.resolve() == parent and parent.is_relative_to(settings.LIONWEB_DATA)
    if ".." in folder.parts or folder == parent or not folder.is_relative_to(parent) or not parent_there or folder.resolve() != folder:
        raise ConfigError(f"{folder} is not a folder of LionWeb's below {parent}: a link leads out of it, or the row is wrong. Left alone.")
    return folder


def size_of(*folders: Path, shared: bool = True) -> int:
    """Bytes that the folders take together; a file with several names is counted once, or with shared=False not at all."""
    seen: dict[tuple[int, int], int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    found = os.lstat(os.path.join(root, name))
                except FileNotFoundError:
                    continue  # it was deleted while we looked
                if shared or found.st_nlink == 1:
                    seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def size_with_leftovers(*folders: Path) -> int:
    """Bytes of folders and of what deletions that did not get through left of them."""
    return size_of(*folders, *map(_gone, folders))


def remove(folder: Path) -> list[str]:
    """Delete a folder that was checked before. Gives what could not be deleted, a sentence each; what is not there is no failure.

    The folder is renamed first, so that nobody reads half a checkpoint, and links in it are deleted and not followed.
    """
    gone = _gone(folder)
    problems = _empty(gone)  # of an attempt that did not get through
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return problems
    except OSError as error:
        return [*problems, f"{folder} could not be deleted: {error.strerror}."]
    return problems + _empty(gone)


def is_there(folder: Path) -> bool:
    """Whether a folder, or what a deletion left of it, is on the disk."""
    return folder.exists() or _gone(folder).exists()


def _gone(folder: Path) -> Path:
    """What a folder is called while it is deleted."""
    return folder.with_name(f".{folder.name}.deleted")


def _empty(folder: Path) -> list[str]:
    """Delete a folder, file by file: one that cannot be deleted keeps none of the others."""
    problems: list[str] = []
    if folder.is_symlink() or not folder.is_dir():
        return problems
    for root, folders, files in os.walk(folder, topdown=False, followlinks=False):
        for name in files:
            _try(os.unlink, os.path.join(root, name), problems)
        for name in folders:
            path = os.path.join(root, name)
            _try(os.unlink if os.path.islink(path) else os.rmdir, path, problems)
    _try(os.rmdir, str(folder), problems)
    return problems


def _try(delete: Callable[[str], None], path: str, problems: list[str]) -> None:
    try:
        delete(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path} could not be deleted: {error.strerror}.")
