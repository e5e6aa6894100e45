"""Files of a repository, in memory."""

import hashlib
import json
from dataclasses import dataclass, field

from adapterhub.content.safetensors import header_length, parse_header
from adapterhub.repos.files import Entry
from adapterhub.storage import git


@dataclass
class MemoryFiles:
    """What `RepoFiles` offers, over a dict of bytes."""

    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def manifest(self):
        return {
            path: Entry(path, hashlib.sha256(data).hexdigest(), git.blob_oid(data), len(data), lfs=False)
            for path, data in sorted(self.contents.items())
        }

    async def read(self, path, limit=1 << 21):
        return self.contents[path]

    async def header(self, path):
        data = self.contents.get(path)
        if data is None or not path.endswith(".safetensors"):
            return None
        found = parse_header(data[: header_length(data[:8])], len(data))
        return {name: [info.dtype, list(info.shape)] for name, info in found.items()}


def safetensors(shapes):
    """A safetensors file of zeros: {name: shape}."""
    header, at = {}, 0
    for name, shape in shapes.items():
        count = 4
        for size in shape:
            count *= size
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)
