"""Is a file believed only where all of it is proven to be what its name says, whatever else could be made of it?"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import runpy
import struct
import time
import zipfile
import zipimport
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub import accounts
from adapterhub.changes import committing, manage
from adapterhub.changes.committing import Put
from adapterhub.content import texts
from adapterhub.content.inspect import inspect
from adapterhub.content.kinds import ALLOWED, judge, misnamed, refused_name
from adapterhub.content.pickles import is_pickle
from adapterhub.content.reading import Malformed
from adapterhub.content.texts import MAX_JSON
from adapterhub.errors import BadRequest, Unprocessable
from adapterhub.hub import Hub
from adapterhub.ingest import ingest, once
from tests.adapterhub.content import valid

RAN: list[str] = []


def ran(what: str) -> str:
    RAN.append(what)
    return what


class Evil:
    """What its pickles run is the function above."""

    def __reduce__(self) -> Any:
        return ran, ("torch.load",)


# ---- tar archives without a magic, as their oldest form had none ---------------------------------------------------


def block(size: int, *, before: bytes, fill: bytes = b" ", type: bytes = b" ") -> bytes:
    """The block in front of a member.

    Args:
        before: the bytes with which it begins, the member's name.
        fill: what stands where nothing is needed; with blanks it is text.
    """
    header = before.ljust(100, fill) + b"0000644 0000000 0000000 %011o 00000000000 " % size + b" " * 8 + type
    header = header.ljust(512, fill)
    return header[:148] + b"%06o  " % sum(header) + header[156:]


def member(name: bytes, content: bytes) -> bytes:
    return block(len(content), before=name, fill=b"\0", type=b"0") + content.ljust(len(content) + -len(content) % 512)


def text_member(name: bytes, content: bytes, before: bytes = b"") -> bytes:
    """A member in text alone: a record in front of it has its name, which needs no NUL at its end there."""
    named = b"%d path=%b\n" % (len(name) + 9, name)
    assert len(named) == len(name) + 9
    record = (named + b"%d comment=" % (512 - len(named))).ljust(511, b".") + b"\n"
    content = content.ljust(512)
    return block(512, before=before, type=b"x") + record + block(len(content), before=b"") + content


def checkpoint(make: Callable[..., bytes], protocol: int, **first: Any) -> bytes:
    """What `torch.load` looks for in a tar archive: the first member of a checkpoint of the first torch."""
    return make(b"storages", pickle.dumps(Evil(), protocol), **first)


OLD = checkpoint(member, 2) + bytes(1024)
TEXT = checkpoint(text_member, 0, before=b"# A card\n")


def with_block(data: bytes) -> bytes:
    """Turns what is blank in the first 512 bytes into the first block, whose member goes up to the old checkpoint."""
    second = data.index(OLD)
    assert second % 512 == 0
    assert data[100:512].isspace()
    return block(second - 512, before=data[:100]) + data[512:]


def tar_in(make: Callable[[bytes], bytes]) -> bytes:
    """An archive in what the format keeps as a note."""
    start = make(b"note" + b" " * 600).index(b"note")
    return with_block(make(b"note".ljust(1024 - start) + OLD))


def tar_png() -> bytes:
    """The same, with the checksum of the note."""
    data = bytearray(tar_in(valid.png))
    end = 41 + int.from_bytes(data[33:37], "big")
    data[end : end + 4] = struct.pack(">I", zlib.crc32(data[37:end]))
    return bytes(data)


def tar_safetensors() -> bytes:
    """The first block lies in the metadata, the others in a tensor."""
    plain = valid.safetensors(OLD, note=" " * 600, before=1024)
    return with_block(plain)


def tar_gguf() -> bytes:
    """The first block lies in a setting, the others in a tensor."""
    begin = valid.gguf(OLD, note=b" " * 2000).index(OLD)
    return with_block(valid.gguf(OLD, note=b" " * (2000 + -begin % 512)))


TARS = {
    "README.md": lambda: TEXT,
    "adapter_config.json": lambda: TEXT,
    "weights": lambda: TEXT,
    "tokenizer.model": lambda: TEXT,
    "adapter.safetensors": tar_safetensors,
    "model.gguf": tar_gguf,
    "logo.png": tar_png,
    "photo.jpg": lambda: tar_in(valid.jpeg),
    "pic.webp": lambda: tar_in(valid.webp),
    "paper.pdf": lambda: tar_in(valid.pdf),
}


@pytest.mark.parametrize("name", TARS)
def test_tars_stay_out(name: str, tmp_path: Path):
    """Each is a valid file of its format as well, all but the JSON."""
    (tmp_path / "checkpoint").write_bytes(TARS[name]())
    (tmp_path / name).write_bytes(TARS[name]())
    RAN.clear()
    with contextlib.suppress(EOFError, KeyError, TypeError, pickle.UnpicklingError):  # once it ran
        # Under another name: what ends with `.safetensors` would be loaded as such.
        torch.load(tmp_path / "checkpoint", weights_only=False)
    assert RAN == ["torch.load"]
    parse = ALLOWED[format_of(name)][1]
    with contextlib.nullcontext() if not name.endswith(".json") else pytest.raises(Malformed):
        parse(TARS[name]())
    for known in (name, ""):
        assert "tar archive" in str(inspect(tmp_path / name, known)[1])


def format_of(name: str) -> str:
    endings = {ending: format for format, (endings, _) in ALLOWED.items() for ending in endings}
    found = endings.get(Path(name).suffix, "text")
    return "text" if name == "tokenizer.model" else found


# ---- zip archives within, and behind them a byte -------------------------------------------------------------------


def program() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__main__.py", f"import {__name__} as t;t.ran('zip')")
    return buffer.getvalue() + b"!"


ZIPS = {
    "adapter.safetensors": lambda: valid.safetensors(program()),
    "model.gguf": lambda: valid.gguf(program()),
    "spiece.model": lambda: valid.sentencepiece(payload=program()),
    "logo.png": lambda: valid.png(program()),
    "photo.jpg": lambda: valid.jpeg(program()),
    "anim.gif": lambda: valid.gif(program()),
    "pic.webp": lambda: valid.webp(program()),
    "paper.pdf": lambda: valid.pdf(program()),
}


@pytest.mark.parametrize("name", ZIPS)
def test_zips_stay_out(name: str, tmp_path: Path):
    """Each is a valid file of its format as well; Python runs it all the same. A zip archive cannot be text."""
    (tmp_path / name).write_bytes(ZIPS[name]())
    RAN.clear()
    runpy.run_path(str(tmp_path / name))
    assert RAN == ["zip"]
    ALLOWED[format_of(name)][1](ZIPS[name]())
    for known in (name, ""):
        assert "zip archive" in str(inspect(tmp_path / name, known)[1])


def test_every_format_has_a_polyglot():
    assert {format_of(name) for name in (*TARS, *ZIPS)} == set(ALLOWED)


def test_pickles_far_behind_are_found(tmp_path: Path):
    """The length of the header is the letter V: an unpickler reads a text up to the next line, a megabyte away."""
    evil = b"0c%s\nran\n(S'pickle'\ntR." % __name__.encode()
    data = valid.safetensors(b"\n" + evil, before=0x200056 + 8)
    (tmp_path / "a.safetensors").write_bytes(data)
    RAN.clear()
    with open(tmp_path / "a.safetensors", "rb") as file:
        pickle.load(file)
    assert RAN == ["pickle"]
    assert "pickle" in str(inspect(tmp_path / "a.safetensors", "a.safetensors")[1])


@pytest.mark.parametrize("number", [b"p1_0\n", b"p1\0no number\n", b"0I1\0no number\n", b"0F1.5\0no\n", b"0I\0\n"])
def test_numbers_are_read_as_the_unpickler_in_c_does(number: bytes):
    data = b"N" + number + b"c%s\nran\n(S'pickle'\ntR." % __name__.encode()
    RAN.clear()
    pickle.loads(data)
    assert RAN == ["pickle"]
    assert is_pickle(data)


def test_a_last_line_needs_no_end():
    data = b"(S'pickle'\ni%s\nran" % __name__.encode()
    RAN.clear()
    with contextlib.suppress(EOFError):
        pickle._Unpickler(io.BytesIO(data + b"!")).load()  # it drops the last byte, whatever it is
    assert RAN == ["pickle"]
    assert is_pickle(data + b"!")


def test_the_length_of_a_header_is_no_gzip():
    data = valid.safetensors(before=0x088B1F + 8)
    assert data[:3] == b"\x1f\x8b\x08"
    assert "gzip" in str(judge("a.safetensors", data))


# ---- what comes in -------------------------------------------------------------------------------------------------

VALID = {
    "README.md": b"# A card\n",
    "adapter_config.json": b'{"config": {}}',
    "adapter.safetensors": valid.safetensors(),
    "model.gguf": valid.gguf(),
    "spiece.model": valid.sentencepiece(),
    "logo.png": valid.png(b"a note"),
    "photo.jpg": valid.jpeg(b"a note"),
    "anim.gif": valid.gif(b"a note"),
    "pic.webp": valid.webp(b"a note"),
    "paper.pdf": valid.pdf(),
}
BINARY = [name for name in VALID if format_of(name) not in ("text", "json")]


def test_every_format_has_a_valid_file():
    assert {format_of(name) for name in VALID} == set(ALLOWED)


@pytest.mark.parametrize("name", VALID)
def test_what_comes_in_cannot_be_run(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(VALID[name])
    assert inspect(path, name)[1] is None
    assert inspect(path)[1] is None
    assert misnamed(name, VALID[name], len(VALID[name])) is None
    if format_of(name) != "safetensors":  # which torch knows by its name, and loads without pickle
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, RuntimeError)):
            torch.load(path, weights_only=False)
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, RuntimeError)):
        torch.load(path.rename(tmp_path / "checkpoint"), weights_only=False)
    path = tmp_path / "checkpoint"
    with pytest.raises(zipimport.ZipImportError):
        zipimport.zipimporter(str(path))
    assert not zipfile.is_zipfile(path)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("added", [b"\0", b"x", b"<script>", bytes(512)])
def test_nothing_stands_behind_the_end(name: str, added: bytes):
    assert judge(name, VALID[name] + added)
    assert judge("", VALID[name] + added)


@pytest.mark.parametrize("name", BINARY)
def test_nothing_is_missing(name: str):
    data = VALID[name]
    data = data[:-28] if name == "model.gguf" else data.rstrip() if name == "paper.pdf" else data  # what may be missing
    for end in {*range(20, len(data), max(1, len(data) // 50)), len(data) - 1}:
        # A model may end with fewer pieces than it has; in front of a section, it is whole.
        assert judge(name, data[:end]) or (name == "spiece.model" and data[end] in (0x0A, 0x12, 0x1A)), end


@pytest.mark.parametrize("name", BINARY)
def test_a_name_that_comes_later_is_looked_at(name: str):
    for other in VALID:
        fits = format_of(other) == format_of(name)
        assert (misnamed(other, VALID[name], len(VALID[name])) is None) == fits, other


@pytest.mark.parametrize(
    "name", ["w.pkl.", "w.pkl. .", "W.PKL", "w\uff0epkl", "w.pk\uff4c", "w.pkl:x", "w.pkl::$DATA", "a/w.bin."]
)
def test_endings_are_seen_as_systems_see_them(name: str):
    assert refused_name(name)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.png", valid.png().replace(b"IDAT", b"IDAt"), "unknown type|checksum"),
        ("a.png", valid.png()[:-1] + b"\0", "checksum"),
        ("a.png", valid.png()[:33] + valid.png()[-12:], "without an image"),
        ("a.jpg", b"\xff\xd8\xff\xd9", "no image"),
        ("a.gif", b"GIF89a" + bytes(7) + b";", "no image"),
        ("a.webp", b"RIFF\4\0\0\0WEBP", "no image"),
        ("a.webp", b"RIFF\x10\0\0\0WEBPCODE\4\0\0\0\0\0\0\0", "unknown type"),
        ("a.pdf", b"%PDF-1.5\nwords\nstartxref\n3\n%%EOF", "no table"),
        ("a.pdf", b"%PDF-1.5\nwords", "EOF"),
        ("a.gguf", b"GGUF\3\0\0\0" + struct.pack("<QQ", 1 << 60, 0), "tensors"),
        ("a.gguf", b"GGUF\3\0\0\0" + struct.pack("<QQ", 0, 1 << 60), "cut off"),
        ("a.gguf", valid.gguf().replace(struct.pack("<IQ", 24, 0), struct.pack("<IQ", 24, 32)), "gap|over"),
        ("a.gguf", valid.gguf().replace(struct.pack("<IQ", 24, 0), struct.pack("<IQ", 99, 0)), "unknown type"),
        ("a.json", b"", "not JSON"),
        ("a.json", b"{} {}", "not JSON"),
        ("a.json", b"[" * 2000 + b"]" * 2000, "nested"),
        ("a.json", b"\xef\xbb\xbf{}", "not JSON"),
    ],
)
def test_malformed_files_are_refused(name: str, data: bytes, why: str):
    with pytest.raises(Malformed, match=why):
        ALLOWED[format_of(name)][1](data)
    assert judge(name, data)


# ---- JSON: the standard library is the reference -------------------------------------------------------------------


def is_json(data: bytes) -> bool:
    try:
        texts.json(data)
    except Malformed:
        return False
    return True


def reference(data: bytes) -> bool:
    try:
        json.loads(data.decode())
    except ValueError:
        return False
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=4), inner, max_size=30),
    max_leaves=60,
)


@settings(max_examples=40)
@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_json_is_taken(value: Any, indent: int | None, ascii: bool):
    assert is_json(json.dumps(value, indent=indent, ensure_ascii=ascii).encode("utf-8", "replace"))


@settings(max_examples=60)
@given(VALUES, st.integers(0, 200), st.sampled_from(list('[]{},:"\\ \n0-.eEx')), st.booleans())
def test_json_is_what_the_standard_library_takes(value: Any, position: int, character: str, replaces: bool):
    text = json.dumps(value)
    text = text[:position] + character + text[position + replaces :]
    assert is_json(text.encode()) == reference(text.encode()), text


@given(st.text('[]{},:"\\0-1.eEntrulfasNaI \n', max_size=14))
def test_short_texts_are_judged_as_the_standard_library_does(text: str):
    assert is_json(text.encode()) == reference(text.encode())


def test_long_values_are_taken():
    long = [
        "\\n" * 5000,
        "é" * 70_000,
        list(range(5000)),
        [[i, str(i)] for i in range(5000)],
        {str(i): [{}] for i in range(999)},
    ]
    assert is_json(json.dumps(long).encode())
    assert not is_json(json.dumps(long)[:-1].encode())


@pytest.mark.parametrize("piece", [b"[", b"[[],", b'{"a":', b'"', b'"\\', b"1", b"[1,", b'["a",', b"[{},[[]],", b" "])
def test_hostile_json_is_judged_quickly(piece: bytes):
    data = b"[" + piece * ((8 << 20) // len(piece))
    start = time.process_time()
    assert not is_json(data)
    assert time.process_time() - start < 3


def test_json_is_not_too_long():
    assert not is_json(b"[" + b" " * MAX_JSON + b"]")


# ---- in a hub -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("logo.png", valid.safetensors()),
        ("README.md", valid.gguf()),
        ("spiece.model", valid.png()),
        ("a.safetensors", b"words"),
        ("config.json", b'{"a": 1'),
        ("config.json", b"{" + b" " * (1 << 20)),
    ],
)
def test_bytes_that_come_without_a_name_must_fit_the_one_they_get(hub: Hub, run: Any, name: str, data: bytes):
    async def work() -> None:
        async with hub.db.read() as conn:
            alice = await accounts.principal(hub.db, (await accounts.find_account(conn, "alice"))["id"])
        repo = await manage.create(hub, alice, "alice/files")
        blob = await ingest(hub, once(data), repo_id=repo.id)
        await committing.commit(hub, alice, repo, "main", [Put(name, blob.sha256, lfs=True)], title="Add")

    with pytest.raises((Unprocessable, BadRequest), match=f"^'?{name}'? .*(should be|is not a valid)"):
        run(work())
