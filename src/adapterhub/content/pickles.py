"""Would an unpickler run code that is in these bytes?

Protocol 0 is text, and harmless formats can begin with bytes that are opcodes too. So the opcodes are followed, with
the height of the stack alone, until one would run code or cannot be executed. Where readers differ, the most lenient
one counts: at worst a file is wrongly refused.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator

from .reading import Buffer

__all__ = ["is_pickle"]

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
# Not persistent ids and extensions: they name what the reading program has registered, which is nothing by default.
_NAMES_CODE = frozenset(("GLOBAL", "INST", "STACK_GLOBAL"))
_RUNS_CODE = frozenset(("REDUCE", "BUILD", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX"))
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_MOST_OPCODES = 50_000
_Opcode = pickletools.OpcodeInfo

_BLANK = re.compile(rb"\s*")
_QUOTE = re.compile(rb"\s*['\"]")
_GLOBAL_NAME = re.compile(rb"\S+")
_NUMBERLIKE = re.compile(rb"[\s\w.+-]*")
_LONG_LINE = 1 << 12  # of longer ones, only the characters are looked at


class _NotPickle(Exception):
    """The next byte cannot be executed."""


def is_pickle(data: Buffer) -> bool:
    """Whether an unpickler would run code, or read all of the data as one value."""
    stack: list[bool] = []  # True for a mark
    named, count = False, 0
    try:
        for opcode, end in _opcodes(data):
            count += 1
            named = named or opcode.name in _NAMES_CODE
            _execute(opcode, stack)
            if count > _MOST_OPCODES or (named and opcode.name in _RUNS_CODE):
                return True
            if opcode.name == "STOP":
                if count > 1 and end >= 4 and _BLANK.fullmatch(data, end):
                    return True
                stack = []
    except _NotPickle:
        return False
    return False


def _opcodes(data: Buffer) -> Iterator[tuple[_Opcode, int]]:
    """The opcodes of a pickle, each with the position after its argument."""
    position, size = 0, len(data)
    while position < size:
        opcode = _OPCODES.get(data[position])
        if opcode is None:
            raise _NotPickle
        position = _skip_argument(data, position + 1, opcode)
        yield opcode, position


def _skip_argument(data: Buffer, position: int, opcode: _Opcode) -> int:
    size = opcode.arg.n if opcode.arg else 0
    if size == pickletools.UP_TO_NEWLINE:
        for _ in range(2 if opcode.name in ("GLOBAL", "INST") else 1):
            end = data.find(b"\n", position)
            end = len(data) if end < 0 else end  # an unpickler takes a last line without its end, too
            _check_line(opcode.name, data, position, end)
            position = min(end + 1, len(data))
        return position
    if size in _LENGTH_BYTES:
        width = _LENGTH_BYTES[size]
        size = int.from_bytes(data[position : position + width], "little")
        position += width
    if position + size > len(data):
        raise _NotPickle
    return position + size


def _check_line(name: str, data: Buffer, start: int, end: int) -> None:
    if name in ("GLOBAL", "INST"):
        valid = _GLOBAL_NAME.fullmatch(data, start, end) is not None
    elif name == "STRING":
        valid = _QUOTE.match(data, start, end) is not None
    elif name in ("GET", "PUT", "INT", "LONG", "FLOAT"):
        nul = data.find(b"\0", start, end)  # the unpickler in C reads numbers up to there
        end = end if nul < 0 else nul
        valid = _NUMBERLIKE.fullmatch(data, start, end) is not None
        if valid and end - start <= _LONG_LINE:
            valid = _is_number(data[start:end].strip().rstrip(b"L"))
    else:
        valid = True
    if not valid:
        raise _NotPickle


def _is_number(text: bytes) -> bool:
    if not text:
        return True
    for read in (float, lambda value: int(value, 0)):
        try:
            read(text.decode("latin-1"))
            return True
        except ValueError:
            continue
    return False


def _execute(opcode: _Opcode, stack: list[bool]) -> None:
    """What an opcode does to the marks and the height of the stack."""
    before, after = opcode.stack_before, opcode.stack_after
    needed = len(before)
    to_mark = pickletools.markobject in before
    if to_mark or (opcode.name == "POP" and stack and stack[-1]):
        try:
            while not stack.pop():
                pass
        except IndexError:
            raise _NotPickle from None
        needed = before.index(pickletools.markobject) if to_mark else 0
    if len(stack) < needed or any(stack[len(stack) - needed :]):
        raise _NotPickle
    del stack[len(stack) - needed :]
    stack.extend(item is pickletools.markobject for item in after)
