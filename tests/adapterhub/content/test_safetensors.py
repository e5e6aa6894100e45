"""Are headers of safetensors files read as the reference library writes them, and every lie refused?"""

from __future__ import annotations

import contextlib
import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from adapterhub.content.safetensors import InvalidSafetensors, TensorInfo, header_length, parse_header


def pack(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def parse(file: bytes) -> dict[str, TensorInfo]:
    return parse_header(file[: header_length(file[:8])], len(file))


def test_reads_what_the_library_writes():
    arrays = {
        "a": np.zeros((2, 3), np.float32),
        "b": np.ones((4,), np.int64),
        "c": np.zeros((0, 5), np.float16),
        "scalar": np.array(True),
    }
    tensors = parse(save(arrays, metadata={"format": "pt"}))
    assert {name: info.shape for name, info in tensors.items()} == {name: array.shape for name, array in arrays.items()}
    assert {name: info.dtype for name, info in tensors.items()} == {
        "a": "F32",
        "b": "I64",
        "c": "F16",
        "scalar": "BOOL",
    }
    assert sum(info.end - info.start for info in tensors.values()) == sum(array.nbytes for array in arrays.values())


def test_no_tensors_is_a_file():
    assert parse(save({})) == {}


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "U8", "BOOL"])
def test_one_byte_types(dtype: str):
    assert parse(pack({"a": tensor(dtype, [8])}, bytes(8)))["a"].shape == (8,)


@pytest.mark.parametrize(("dtype", "shape"), [("C64", [1]), ("F64", [1]), ("F4", [16]), ("BF16", [2, 2])])
def test_other_sizes(dtype: str, shape: list[int]):
    assert parse(pack({"a": tensor(dtype, shape)}, bytes(8)))["a"].dtype == dtype


LIES = {
    "empty": b"",
    "seven bytes": b"\x08\0\0\0\0\0\0",
    "header of no bytes": pack(b""),
    "header beyond the file": struct.pack("<Q", 100) + b"{}",
    "header beyond the limit": struct.pack("<Q", 9 << 20) + b"{}",
    "largest length": b"\xff" * 8 + b"{}",
    "list": pack([1]),
    "spaces first": pack(b"  {}"),
    "no JSON": pack(b"{]"),
    "no UTF-8": pack(b'{"\xff":1}'),
    "two documents": pack(b"{}{}"),
    "duplicate tensor": pack(b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode(),) * 2), bytes(8)),
    "duplicate member": pack(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "NaN": pack(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "deep": pack(b"[" * 100_000),
    "deep object": pack(b'{"a":' * 50_000),
    "many lists": pack(b'{"a":[' + b"[]," * 500_000 + b"[]]}"),
    "huge number": pack(b'{"a":' + b"9" * 10_000 + b"}"),
    "unknown dtype": pack({"a": tensor("F33")}, bytes(8)),
    "dtype is a list": pack({"a": tensor(["F32"])}, bytes(8)),  # type: ignore[arg-type]
    "negative shape": pack({"a": tensor(shape=[-2])}, bytes(8)),
    "two negatives": pack({"a": tensor(shape=[-2, -1])}, bytes(8)),
    "float shape": pack({"a": tensor(shape=[2.0])}, bytes(8)),
    "bool shape": pack({"a": tensor("F64", [True])}, bytes(8)),
    "text shape": pack({"a": tensor(shape="2")}, bytes(8)),
    "overflowing shape": pack({"a": tensor(shape=[2**62, 4])}, bytes(8)),
    "half bytes": pack({"a": tensor("F4", [15])}, bytes(8)),
    "too few bytes": pack({"a": tensor(shape=[3])}, bytes(8)),
    "offsets turned": pack({"a": tensor(shape=[0], offsets=[8, 0])}, bytes(8)),
    "negative offsets": pack({"a": tensor(offsets=[-8, 0])}, bytes(8)),
    "three offsets": pack({"a": tensor(offsets=[0, 8, 8])}, bytes(8)),
    "no offsets": pack({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "extra member": pack({"a": tensor(extra=1)}, bytes(8)),
    "overlap": pack({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)),
    "same bytes twice": pack({"a": tensor(), "b": tensor()}, bytes(8)),
    "hole": pack({"a": tensor(), "b": tensor(offsets=[12, 20])}, bytes(20)),
    "hole at the start": pack({"a": tensor(offsets=[4, 12])}, bytes(12)),
    "bytes after the end": pack({"a": tensor()}, bytes(9)),
    "cut off": pack({"a": tensor()}, bytes(7)),
    "metadata is a list": pack({"__metadata__": []}),
    "metadata holds a number": pack({"__metadata__": {"a": 1}}),
    "metadata is nested": pack({"__metadata__": {"a": {"b": "c"}}}),
}


@pytest.mark.parametrize("file", LIES.values(), ids=LIES.keys())
def test_lies_are_refused(file: bytes):
    start = time.process_time()
    with pytest.raises(InvalidSafetensors):
        parse(file)
    assert time.process_time() - start < 1


@given(st.binary(max_size=200) | st.binary(max_size=200).map(pack))
def test_random_bytes_are_refused_or_read(file: bytes):
    with contextlib.suppress(InvalidSafetensors):
        parse(file)


DTYPES = st.sampled_from(["F32", "F16", "U8", "F33"])


@given(st.lists(st.tuples(DTYPES, st.lists(st.integers(0, 3), max_size=2), st.integers(0, 9), st.integers(0, 12))))
def test_never_accepts_what_the_library_refuses(tmp_path_factory: pytest.TempPathFactory, tensors: list[Any]):
    header = {str(i): tensor(dtype, shape, [start, end]) for i, (dtype, shape, start, end) in enumerate(tensors)}
    end = max((end for *_, end in tensors), default=0)
    file = pack(header, bytes(end))
    path: Path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(file)
    try:
        with safe_open(path, "np") as opened:
            names = set(opened.keys())
    except SafetensorError:
        names = None
    try:
        ours = set(parse(file))
    except InvalidSafetensors:
        ours = None
    assert ours is None or ours == names
