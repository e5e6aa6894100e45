"""Would a loader find an archive, or something compressed, in these bytes?"""

from __future__ import annotations

import re
import zlib
from tarfile import TarInfo

from .pickles import is_pickle
from .reading import Buffer

__all__ = ["disguise", "ends_as_zip", "is_tar"]

_TAIL = (1 << 16) + 22  # a zip archive's last record, and the longest comment behind it
_BLOCK = 512  # of a tar archive
_HDF5 = b"\x89HDF\r\n\x1a\n"
_CHECKED = 4096  # bytes of what is unpacked

# First bytes of what loaders unpack, or run, whatever the name is.
_FIRST = (
    *((b"PK" + rest, "is a zip archive") for rest in (b"\3\4", b"\5\6", b"\7\x08")),
    (b"\x93NUMPY", "is a NumPy file, which can hold pickled objects"),
    (b"\x1f\x8b", "is compressed with gzip"),
    (b"\xfd7zXZ\0", "is compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard"),
    (b"\x04\x22\x4d\x18", "is compressed with LZ4"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
    (b"Rar!\x1a\x07", "is a RAR archive"),
    (b"\x7fELF", "is a program"),
    (b"MZ\x90\0", "is a program"),
    (b"\xca\xfe\xba\xbe", "is a program"),
    (b"\xcf\xfa\xed\xfe", "is a program"),
)
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)")
_LZMA = re.compile(rb"\x5d\0.{11}\0", re.DOTALL)
_OCTAL = re.compile(rb"[\s\0]*([0-7]+)")


def disguise(data: Buffer) -> str | None:
    """What a loader could take the bytes for that unpacks or runs them, to follow after the file's name; or None."""
    head = data[:_BLOCK]
    for first, what in _FIRST:
        if head.startswith(first):
            return f"is {_archive(data[: 1 << 20])}" if what == "is a zip archive" else what
    if _BZIP2.match(head):
        return "is compressed with bzip2"
    if _LZMA.match(head):
        return "is compressed with LZMA"
    if is_tar(data):
        return "is a tar archive, which can hold a pickle, too"
    if ends_as_zip(data):
        return "has a zip archive in it, which loaders would open"
    if _is_hdf5(data):
        return "is an HDF5 file, where a Keras model can hold code"
    if is_pickle(data):
        return "can be read as a pickle, which can run any code"
    if _is_zlib(data):
        return "is compressed with zlib, as joblib writes pickles"
    return None


def is_tar(data: Buffer) -> bool:
    """Whether the first block has the checksum of a tar archive: its oldest form has no other mark.

    Readers differ in which signs they count as negative, and in how they read a number; all their ways are tried.
    """
    block = data[:_BLOCK]
    if len(block) < _BLOCK or not any(block):
        return False
    rest, field = block[:148] + block[156:], block[148:156]
    unsigned = 256 + sum(rest)
    sums = {unsigned, unsigned - 256 * len(rest.translate(None, bytes(range(128))))}
    octal = _OCTAL.match(field)
    if (octal and int(octal[1], 8) in sums) or (field[0] > 127 and int.from_bytes(field[1:], "big") in sums):
        return True
    try:
        TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except Exception:  # it is not made for hostile bytes
        return False
    return True


def ends_as_zip(data: Buffer) -> bool:
    """Whether there is an archive's last record where readers look for it, and an entry of its directory anywhere.

    Readers find the record from the end, behind whatever junk, and the directory by either of two offsets in it.
    """
    start = max(0, len(data) - _TAIL)
    return data.find(b"PK\5\6", start) >= 0 and data.find(b"PK\1\2") >= 0


def _archive(head: bytes) -> str:
    if b".pkl" in head:
        return "a PyTorch checkpoint: a zip archive that holds a pickle"
    if b".npy" in head:
        return "a NumPy archive, which can hold pickled objects"
    if b"config.json" in head and b".h5" in head:
        return "a Keras model, which can hold code"
    return "a zip archive"


def _is_hdf5(data: Buffer) -> bool:
    offset = 0
    while offset < len(data):
        if data[offset : offset + len(_HDF5)] == _HDF5:
            return True
        offset = offset * 2 or 512
    return False


def _is_zlib(data: Buffer) -> bool:
    """Whether a stream can be unpacked to its end or for a while, or what can of it is a pickle."""
    if data[:1] != b"x" or int.from_bytes(data[:2], "big") % 31:
        return False
    stream, unpacked = zlib.decompressobj(), b""
    try:
        for position in range(0, min(len(data), 1 << 20), 64):
            unpacked += stream.decompress(data[position : position + 64], _CHECKED)
            if len(unpacked) >= _CHECKED or stream.eof:
                return True
    except zlib.error:
        pass
    return is_pickle(unpacked)
