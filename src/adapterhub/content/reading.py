"""Reading a file's bytes without trust: never behind their end, and only as many steps as a real file needs."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

__all__ = ["Buffer", "Malformed", "Reader", "mapped", "opened"]

Buffer: TypeAlias = bytes | mmap.mmap  # all of a file; slices are copies, so they are kept short
MAX_STEPS = 1_500_000


class Malformed(ValueError):
    """The bytes are not what they should be; the text completes the sentence `This file ...`."""


class Reader:
    """A position in a buffer, and the numbers and bytes from there on.

    Args:
        start: where to begin.
        big: whether numbers have their highest byte first.
    """

    def __init__(self, data: Buffer, start: int = 0, *, big: bool = False) -> None:
        self.data = data
        self.size = len(data)
        self.position = start
        self._order = "big" if big else "little"
        self._steps = 0

    @property
    def left(self) -> int:
        """How many bytes follow."""
        return self.size - self.position

    def skip(self, count: int) -> None:
        """Goes on.

        Raises:
            Malformed: there are not as many bytes, or there were too many steps.
        """
        self._steps += 1
        if count > self.left:
            raise Malformed("is cut off")
        if self._steps > MAX_STEPS:
            raise Malformed(f"has more than {MAX_STEPS} parts")
        self.position += count

    def take(self, count: int) -> bytes:
        """The next bytes. Raises as `skip` does."""
        self.skip(count)
        return self.data[self.position - count : self.position]

    def number(self, width: int) -> int:
        """The next unsigned number of some bytes. Raises as `skip` does."""
        return int.from_bytes(self.take(width), self._order)  # type: ignore[arg-type]

    def end(self) -> None:
        """Raises `Malformed` unless nothing follows."""
        if self.left:
            raise Malformed(f"has {self.left} bytes behind its end")


@contextmanager
def opened(path: Path) -> Iterator[Buffer]:
    """All bytes of a file, read when they are looked at."""
    with open(path, "rb") as file, mapped(file) as data:
        yield data


@contextmanager
def mapped(file: IO[bytes] | tempfile.SpooledTemporaryFile[bytes]) -> Iterator[Buffer]:
    """As `opened`, of a file that is open."""
    file.flush()
    if not os.fstat(file.fileno()).st_size:
        yield b""
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data
