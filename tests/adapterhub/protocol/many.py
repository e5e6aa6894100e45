"""Uploads many small files, lists them, and fetches two of their 50 folders: run as a program with their number."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download


def main(number: int) -> None:
    """Prints how many files were listed and fetched, and whether a second upload made no commit."""
    api, folder = HfApi(), Path(tempfile.mkdtemp())
    for i in range(number):
        path = folder / f"{i % 50}" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"file {i}\n")
    repo = api.create_repo("alice/many").repo_id
    api.upload_folder(repo_id=repo, folder_path=folder)
    head = api.model_info(repo).sha
    api.upload_folder(repo_id=repo, folder_path=folder)
    again = api.model_info(repo).sha == head
    listed = sum(1 for item in api.list_repo_tree(repo, recursive=True) if hasattr(item, "size"))
    got = Path(snapshot_download(repo, allow_patterns=["7/*", "49/*"]))
    files = [path for path in got.glob("*/*.txt") if path.read_text() == (folder / path.relative_to(got)).read_text()]
    print(json.dumps({"listed": listed, "fetched": len(files), "again": again}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
