"""Is this text, JSON or a PDF from the first byte to the last?"""

from __future__ import annotations

import codecs
import re

from .reading import Buffer, Malformed

__all__ = ["MAX_JSON", "begins_as_text", "json", "pdf", "text"]

_BLOCK = 1 << 20


def text(data: Buffer) -> None:
    """UTF-8 without NUL.

    Raises:
        Malformed: it is something else.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data) + 1, _BLOCK):
        block = data[start : start + _BLOCK]
        if b"\0" in block or not _decodes(decoder, block, final=start + _BLOCK > len(data)):
            raise Malformed("is not text in UTF-8 up to its end")


def begins_as_text(head: bytes, size: int) -> bool:
    """Whether the first bytes of a file of some size are text, of which a character may be cut off."""
    return b"\0" not in head and _decodes(codecs.getincrementaldecoder("utf-8")(), head, final=len(head) == size)


def _decodes(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool) -> bool:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True


# ---- JSON -----------------------------------------------------------------------------------------------------------
#
# Read without building it. Runs of items without nesting, which is nearly all of a vocabulary, are one step each.

MAX_JSON = 64 << 20
_MOST_STEPS, _DEEPEST = 600_000, 500
_SPACE = rb"[ \t\r\n]*"
_PLAIN = rb'[^"\\\x00-\x1f]*'
_ESCAPED = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_SHORT_STRING = rb'"%s(?:%s%s){0,100}"' % (_PLAIN, _ESCAPED, _PLAIN)
_DIGITS = rb"[0-9]{%d,4300}"  # as many as Python reads
_NUMBER = rb"-?(?:(?:0|[1-9]%b)(?:\.%b)?(?:[eE][+-]?%b)?|Infinity)" % (_DIGITS % 0, _DIGITS % 1, _DIGITS % 1)
_SIMPLE = rb"(?:%s|%s|true|false|null|NaN)" % (_SHORT_STRING, _NUMBER)
_LIST = rb"\[%s(?:%s%s,%s){0,20}%s%s\]" % (_SPACE, _SIMPLE, _SPACE, _SPACE, _SIMPLE, _SPACE)
_ITEM = rb"(?:%s|%s|\[\]|\{\})" % (_SIMPLE, _LIST)
_ITEMS = re.compile(rb"(?:%s%s%s,){0,200}" % (_SPACE, _ITEM, _SPACE))
_PAIRS = re.compile(rb"(?:%s%s%s:%s%s%s,){0,200}" % (_SPACE, _SHORT_STRING, _SPACE, _SPACE, _ITEM, _SPACE))
_BLANK = re.compile(_SPACE)
_VALUE = re.compile(_SIMPLE)
_STRING_PART = re.compile(rb"(?:%s|%s){1,100}" % (rb'[^"\\\x00-\x1f]+', _ESCAPED))


def json(data: Buffer) -> None:
    """One value of JSON, with Python's `NaN` and `Infinity`.

    Raises:
        Malformed: it is something else, or has more than `MAX_JSON` bytes or too many places that are nested.
    """
    if len(data) > MAX_JSON:
        raise Malformed(f"has more than {MAX_JSON >> 20} MiB, which is as much as JSON may have")
    text(data)
    open_: list[bytes] = []
    position, expects = _blank(data, 0), "value"
    for _ in range(_MOST_STEPS):
        if expects in ("value", "value or end"):
            if open_ and open_[-1] == b"[":
                before, position = position, _blank(data, _after(_ITEMS, data, position))
                expects = "value" if position > before else expects
            first = data[position : position + 1]
            if first == b"]" and expects == "value or end":
                expects = "end"
            elif first in (b"[", b"{") and first:
                open_.append(first)
                if len(open_) > _DEEPEST:
                    raise Malformed("is nested too deeply")
                position, expects = _blank(data, position + 1), "value or end" if first == b"[" else "key or end"
            else:
                position, expects = _blank(data, _simple(data, position)), "comma"
        elif expects in ("key", "key or end"):
            before, position = position, _blank(data, _after(_PAIRS, data, position))
            expects = "key" if position > before else expects
            if data[position : position + 1] == b"}" and expects == "key or end":
                expects = "end"
            elif data[position : position + 1] == b'"':
                position = _blank(data, _simple(data, position))
                if data[position : position + 1] != b":":
                    raise _no_json(position)
                position, expects = _blank(data, position + 1), "value"
            else:
                raise _no_json(position)
        elif expects == "end":  # of the innermost list or object
            position, expects = _blank(data, position + 1), "comma"
            open_.pop()
        elif not open_:
            if position < len(data):
                raise _no_json(position)
            return
        elif (found := data[position : position + 1]) == b",":
            position, expects = _blank(data, position + 1), "value" if open_[-1] == b"[" else "key"
        elif found and found == (b"]" if open_[-1] == b"[" else b"}"):
            expects = "end"
        else:
            raise _no_json(position)
    raise Malformed(f"is nested in more than {_MOST_STEPS} places, which is as much as JSON may be")


def _simple(data: Buffer, position: int) -> int:
    """The position behind a string, a number or a constant."""
    if found := _VALUE.match(data, position):
        return found.end()
    if data[position : position + 1] != b'"':
        raise _no_json(position)
    position += 1
    while found := _STRING_PART.match(data, position):
        position = found.end()
    if data[position : position + 1] != b'"':
        raise _no_json(position)
    return position + 1


def _after(pattern: re.Pattern[bytes], data: Buffer, position: int) -> int:
    found = pattern.match(data, position)
    return found.end() if found else position


def _blank(data: Buffer, position: int) -> int:
    return _after(_BLANK, data, position)


def _no_json(position: int) -> Malformed:
    return Malformed(f"is not JSON from byte {position} on")


# ---- PDF ------------------------------------------------------------------------------------------------------------

_PDF_HEAD = re.compile(rb"%PDF-[12]\.[0-9][ \t]*[\r\n]")
_PDF_END = re.compile(rb"startxref\s+([0-9]{1,12})\s+%%EOF\s*")
_PDF_TAIL = 2048
_XREF = re.compile(rb"\s*(?:xref\b|[0-9]+\s+[0-9]+\s+obj\b)")


def pdf(data: Buffer) -> None:
    """From its version to `%%EOF`, with a table of objects where its end says.

    Raises:
        Malformed: it is something else, too, or in parts.
    """
    if not _PDF_HEAD.match(data[:16]):
        raise Malformed("does not begin with the version of its format")
    tail = data[-_PDF_TAIL:]
    found = _PDF_END.fullmatch(tail, start) if (start := tail.rfind(b"startxref")) >= 0 else None
    if found is None:
        raise Malformed("does not end with %%EOF")
    offset = int(found[1])
    if offset >= len(data) or not _XREF.match(data[offset : offset + 64]):
        raise Malformed("has no table of objects where its end says")
