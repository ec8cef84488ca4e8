"""A folder as an uncompressed tar, piece by piece: its length is known beforehand and no piece is larger than a megabyte."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PIECE_BYTES = 2**20
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True)
class TarStream:
    """The files of a folder as they are now. `size` is in bytes; iterate over it for the pieces.

    A file that gets shorter while it is read raises OSError: the reader sees that the stream breaks off.
    """

    members: Sequence[tuple[Path, bytes, int]]

    @property
    def size(self) -> int:
        return sum(len(head) + size + _padding(size) for _, head, size in self.members) + 2 * BLOCK

    def __iter__(self) -> Iterator[bytes]:
        for path, head, size in self.members:
            yield head
            yield from _pieces(path, size)
            yield bytes(_padding(size))
        yield bytes(2 * BLOCK)


def tar_of(folder: Path, *, name: str) -> TarStream:
    """The regular files below a folder, under one folder called `name` in the tar; links are left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return TarStream(members=[(path, *_head(path, f"{name}/{path.relative_to(folder).as_posix()}")) for path in files])


def _head(path: Path, name: str) -> tuple[bytes, int]:
    found = path.stat()
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = found.st_size, int(found.st_mtime), 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT), found.st_size


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    left = size
    with path.open("rb") as file:
        while left:
            piece = file.read(min(PIECE_BYTES, left))
            if not piece:
                raise OSError(f"{path.name} became shorter while it was read.")
            left -= len(piece)
            yield piece


def _padding(size: int) -> int:
    return -size % BLOCK
