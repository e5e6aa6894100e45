"""Asks many times, and prints how often it was answered and how long it took: run as a program."""

from __future__ import annotations

import json
import sys
import time

from huggingface_hub import HfApi


def main(times: int) -> None:
    """Asks so many times."""
    api, began = HfApi(), time.monotonic()
    api.create_repo("alice/asked")
    answers = sum(len(list(api.list_repo_tree("alice/asked"))) == 1 for _ in range(times))
    print(json.dumps({"answers": answers, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
