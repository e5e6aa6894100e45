"""Does code in any disguise stay out, and does what people really share come in?"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import marshal
import pickle
import pickletools
import re
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from adapterhub.content.inspect import find_secret, inspect
from adapterhub.content.kinds import judge, kind, refused_name
from adapterhub.errors import Unprocessable
from tests.adapterhub.content import valid

RAN: list[str] = []


def run(what: str) -> str:
    RAN.append(what)
    return what


class Evil:
    def __reduce__(self) -> Any:
        return run, ("evil",)


def evil(protocol: int) -> bytes:
    return pickle.dumps({"weights": Evil()}, protocol)


def text_pickle(before: bytes = b"") -> bytes:
    """A pickle that runs code before it fails, without the end that a whole one has."""
    return before + b"c%s\nrun\n(S'evil'\ntR" % __name__.encode() + b"\nthis is no longer a pickle"


def torch_file(**options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(2)}, buffer, **options)
    return buffer.getvalue()


def numpy_file(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays) if len(arrays) > 1 else np.save(buffer, *arrays.values())
    return buffer.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("model.pkl")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zlib_text(content: bytes) -> bytes:
    """A zlib stream that is valid UTF-8 without NUL: one stored block of a length that is text, too."""
    length = 0xC240
    content = content.ljust(length, b" ")
    return b"x\x01\x01" + struct.pack("<HH", length, 0xFFFF - length) + content


GIF = b"GIF89a\x01\x00\x01"  # an unpickler reads these nine bytes as one number
PNG = valid.png()
HDF5 = b"\x89HDF\r\n\x1a\n"

DISGUISES = {
    **{f"protocol {protocol}": evil(protocol) for protocol in range(6)},
    **{f"plain data, protocol {protocol}": pickle.dumps({"a": [1.5, "b"]}, protocol) for protocol in range(6)},
    "protocol 0, optimized": pickletools.optimize(evil(0)),
    "protocol 0, with newlines after it": evil(0) + b"\n\n",
    "protocol 0, unfinished": text_pickle(),
    "protocol 0, after other values": text_pickle(b"I1\n0N0" * 50),
    "protocol 0, after a long text": text_pickle(b"V" + b"words " * 1000 + b"\n0"),
    "protocol 0, after very many values": text_pickle(b"N0" * 400_000),
    "protocol 0, after a text longer than what is read": text_pickle(b"V" + b"words " * 400_000 + b"\n0"),
    "protocol 0, in the second of two pickles": b"I1\n." + evil(0) + b"end",
    "protocol 0, class instance": b"(S'evil'\ni%s\nrun\n" % __name__.encode() + b"trailing",
    "torch, zip": torch_file(),
    "torch, legacy": torch_file(_use_new_zipfile_serialization=False),
    "torch, legacy, protocol 0": torch_file(_use_new_zipfile_serialization=False, pickle_protocol=0),
    "zip with a pickle": zipped("data.pkl", evil(2)),
    "zip of text": zipped("config.json", b"{}"),
    "zip behind a PNG": PNG + zipped("data.pkl", evil(2)),
    "zip behind safetensors": save({"a": np.zeros(2)}) + zipped("data.pkl", evil(2)),
    "zip behind text": b"# A card\n" * 10 + zipped("data.pkl", evil(2)),
    "numpy objects": numpy_file(a=np.array([Evil()], object)),
    "numpy archive": numpy_file(a=np.zeros(2), b=np.array([{}], object)),
    "gzip": gzip.compress(evil(2)),
    "bzip2": bz2.compress(evil(2)),
    "xz": lzma.compress(evil(2)),
    "lzma": lzma.compress(evil(2), lzma.FORMAT_ALONE),
    "zlib": zlib.compress(evil(2)),
    "zlib as text": zlib_text(evil(0)),
    "tar": tarred(evil(2)),
    "HDF5": HDF5 + bytes(100),
    "HDF5 behind 512 bytes": PNG.ljust(512, b"\0") + HDF5 + bytes(100),
    "GIF that is a pickle": GIF + b"0" + text_pickle(),
    "GGUF that is a pickle": b"GGUF\3\0\0\0\0" + b"0" + text_pickle(),
    "marshal": marshal.dumps(compile("1", "", "exec")),
    "program": b"\x7fELF\x02\x01\x01" + bytes(20),
    "windows program": b"MZ\x90\0" + bytes(20),
    "protobuf": b"\x08\x07\x12\x07pytorch\x1a\x052.0.0" + bytes(9),  # as ONNX begins
    "msgpack": b"\x82\xa1a\x01\xa1b\x02",
    "UTF-16": "text".encode("utf-16"),
    "NUL in text": b"text\0text",
    "random": bytes(range(256)),
}
NAMES = ("", "adapter.safetensors", "README.md", "logo.png", "tokenizer.model", "model.gguf", "weights")


@pytest.mark.parametrize("disguise", DISGUISES)
def test_disguises_are_refused(disguise: str, tmp_path: Path):
    (tmp_path / "file").write_bytes(DISGUISES[disguise])
    for name in NAMES:
        header, danger = inspect(tmp_path / "file", name)
        assert header is None
        assert danger is not None
        assert (repr(name) if name else "This file") in danger
    assert not RAN


def test_the_disguises_are_dangerous():
    """What is refused above does run code where it is loaded."""
    dangerous = [d for d in DISGUISES if d.startswith("protocol")] + ["GIF that is a pickle", "GGUF that is a pickle"]
    for disguise in dangerous:
        RAN.clear()
        stream = io.BytesIO(DISGUISES[disguise])
        with contextlib.suppress(pickle.UnpicklingError, EOFError):
            pickle.load(stream)
            pickle.load(stream)
        assert RAN == ["evil"], disguise
    RAN.clear()
    assert zlib.decompress(zlib_text(b"x") + struct.pack(">I", zlib.adler32(b"x".ljust(0xC240)))).startswith(b"x")
    assert zlib_text(evil(0)).decode()
    for disguise in ("zip behind a PNG", "zip behind safetensors", "zip behind text"):
        assert zipfile.is_zipfile(io.BytesIO(DISGUISES[disguise]))


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "PYTORCH_ADAPTER.BIN",
        "a/b/model.pt",
        "model.pth",
        "last.ckpt",
        "data.pkl",
        "x.pickle",
        "x.joblib",
        "x.h5",
        "x.hdf5",
        "x.keras",
        "x.npy",
        "x.npz",
        "x.dill",
        "x.cloudpickle",
        "x.mar",
        "x.nemo",
        "saved_model.pb",
        "training_args.bin",
        "model.onnx",
        "flax_model.msgpack",
        "x.tar.gz",
        "x.zip",
        "x.so",
        "x.pyc",
    ],
)
def test_names_are_refused(name: str):
    assert refused_name(name)
    assert judge(name, b"just text")


GOOD = {
    "adapter.safetensors": save({"a": np.zeros(300, np.float32)}, metadata={"format": "pt"}),
    "README.md": b"---\nlicense: mit\n---\n# Card\n",
    "adapter_config.json": b'{"config": {}}',
    "numbers.json": b'\n[1, -0.5, 1e9, NaN, -Infinity, "\\u00e9\\n", [[], {}], {"a": {"b": [[1], []]}}, null]',
    "code.py": b"import pickle\npickle.loads(b'cos\\nsystem\\n')\n",
    ".gitattributes": b"*.bin filter=lfs\n",
    "empty.txt": b"",
    "vocab.txt": b"cat\nmouse\n.\nR\nb\n",
    "merges.txt": b"#version: 0.2\n\xc4\xa0 t\nh e\n",
    "words.txt": b"I'm\nnot\na\npickle.\n",
    "GIF.txt": b"GIF89a is how images begin",
    "equation.txt": b"x^3 - 1 = 0",
    "PEOPLE": b"Veronica\nSara\n.\n",
    "long.txt": "é".encode() * 700_000,
    "data.csv": b"category,text\nfoo,bar\n.,R\n",
    "formula.txt": b"x^2 + y^2 = 1 is a circle",
    "MZ.txt": b"MZ is how programs begin",
    "logo.png": PNG,
    "photo.JPG": valid.jpeg(),
    "anim.gif": valid.gif(),
    "pic.webp": valid.webp(),
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "paper.pdf": valid.pdf(),
    "model.gguf": valid.gguf(),
    "spiece.model": valid.sentencepiece(),
    "source.spm": valid.sentencepiece(9000),
    "tokenizer.model": b"IQ== 0\nIg== 1\nIw== 2\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_what_people_share_comes_in(name: str, tmp_path: Path):
    (tmp_path / "file").write_bytes(GOOD[name])
    header, danger = inspect(tmp_path / "file", name)
    assert danger is None
    assert header == ({"a": ["F32", [300]]} if name.endswith(".safetensors") else None)
    assert inspect(tmp_path / "file")[1] is None


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("adapter.safetensors", "README.md"),
        ("adapter.safetensors", "logo.png"),
        ("weights", "adapter.safetensors"),
        ("README.md", "adapter.safetensors"),
        ("logo.jpg", "logo.png"),
        ("logo.png", "README.md"),
        ("config.json", "logo.png"),
        ("tokenizer.model", "logo.png"),
        ("model.gguf", "README.md"),
    ],
)
def test_names_must_fit_the_bytes(name: str, like: str):
    danger = judge(name, GOOD[like])
    assert danger is not None
    assert "should be" in danger


def test_a_malformed_safetensors_file_says_what_is_wrong(tmp_path: Path):
    (tmp_path / "file").write_bytes(save({"a": np.zeros(9)}) + b"more")
    header, danger = inspect(tmp_path / "file", "x.safetensors")
    assert header is None
    assert "'x.safetensors' is not a valid safetensors file" in str(danger)


def test_text_is_text_up_to_its_end(tmp_path: Path):
    for end in (b"\xff", b"\0", b"\xc3"):
        (tmp_path / "file").write_bytes(b"words " * 400_000 + end)
        assert "up to its end" in str(inspect(tmp_path / "file", "a.txt")[1])


def token() -> bytes:
    body = b"aB3" * 14 + b"z"
    return b"ahb_" + body + b"%08x" % zlib.crc32(body)


def test_tokens_are_found():
    assert find_secret(b"token = '" + token() + b"'") == "ahb_aB3a…"
    assert find_secret(b"token = 'ahb_" + b"x" * 51 + b"'") is None
    assert find_secret(b"token = 'ahb_...'") is None


@pytest.mark.parametrize("before", [0, 5, (1 << 20) - 20, (1 << 21) - 54])
def test_a_token_is_not_kept(before: int, tmp_path: Path):
    (tmp_path / "file").write_bytes(b" " * before + token() + b"\n")
    with pytest.raises(Unprocessable, match="access token"):
        inspect(tmp_path / "file", "notes.txt")


@given(st.binary(max_size=300), st.sampled_from(["", *GOOD]))
@example(b"(((((2222tttt", "a")
@example(b"\x8c", "")
def test_random_bytes_are_judged(data: bytes, name: str):
    found = judge(name, data)
    assert found is None or found.endswith(".")


# Without `r`, and without long numbers: the reference would take a memo of billions of places for them.
OPCODES = st.text("abcdehilopqstuBCFGIJKLMNPQRSTUV()012.]}\n", max_size=30).filter(lambda t: not re.search(r"\d{5}", t))


@settings(max_examples=300)
@given(OPCODES.map(str.encode))
def test_text_that_unpickles_is_refused(data: bytes):
    """The standard library's unpickler is the reference; `find_class` must not be reached in what is accepted."""
    reached = False

    class Watched(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return lambda *_: self.reach()

        def reach(self) -> None:
            nonlocal reached
            reached = True

    with contextlib.suppress(Exception):
        Watched(io.BytesIO(data)).load()
    if reached:
        assert judge("a.txt", data)


@pytest.mark.parametrize(
    "pattern", [b"(", b"N", b"N0", b"(t", b"PK\5\6", b"\x0a\x05", b"V", b"c\n", b"x\x9c", b"]" * 9 + b"\n"]
)
def test_hostile_bytes_are_judged_quickly(pattern: bytes):
    data = pattern * ((1 << 20) // len(pattern))
    start = time.process_time()
    judge("a.txt", data)
    kind(data, 1 << 30)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("fill", [0, 1, 255])
def test_no_length_of_a_header_looks_dangerous(tmp_path, fill):
    """The first bytes of a safetensors file are a number: of all numbers up to 64 Ki, none makes it suspicious."""
    path = tmp_path / "file"
    for length in (*range(64, 1 << 14, 8), 0x1A70, 0x1C50, 0x5080, 0x9C78):
        text = b'{"a":{"dtype":"U8","shape":[64],"data_offsets":[0,64]}}'.ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + text + bytes([fill]) * 64)
        assert inspect(path, "adapter.safetensors") == ({"a": ["U8", [64]]}, None), hex(length)


def test_trained_weights_behind_any_header_are_taken(tmp_path):
    """Behind the letter P, an unpickler reads on to the next line break, and what follows is as good as random."""
    chance, path = np.random.default_rng(0), tmp_path / "file"
    for length in (0x0D50, 0x1A70, 0x1C50, 0x0258, 0x0168) * 8:
        weights = chance.normal(0, 0.03, 4000).astype(np.float32).tobytes() + b"\n(Rb\n\x82\x01b" * 4
        text = f'{{"a":{{"dtype":"U8","shape":[{len(weights)}],"data_offsets":[0,{len(weights)}]}}}}'.ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + text.encode() + weights)
        assert inspect(path, "adapter.safetensors")[1] is None, hex(length)
