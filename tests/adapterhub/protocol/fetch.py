"""Downloads a repository's file, or all of it, and prints what the cache holds then: run as a program."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download


def main(repo: str, name: str = "") -> None:
    """Prints paths and SHA-256 of the cache's files, and the error if there was one."""
    error = None
    try:
        if name:
            hf_hub_download(repo, name, token=os.environ["HF_TOKEN"])
        else:
            snapshot_download(repo, token=os.environ["HF_TOKEN"])
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/*")
    }
    print(json.dumps({"files": found, "error": error}))


if __name__ == "__main__":
    main(*sys.argv[1:])
