"""Which exact versions is our own set-up made of? Prints constraints.txt from the running environment."""

from __future__ import annotations

import importlib.metadata
import re

HEADER = """\
# Exact versions of our own set-up (Python 3.11). Written by `make constraints`.
# torch has no local suffix, so that pip may take the CPU build; the Makefile installs it first.
"""
NOT_OURS = {"adapterhub", "pip", "setuptools", "wheel", "torch"}


def main() -> None:
    lines = []
    for dist in importlib.metadata.distributions():
        if dist.name.lower() in NOT_OURS:
            continue
        python = dist.metadata["Requires-Python"] if "Requires-Python" in dist.metadata else ""  # noqa: SIM401 (no get)
        needs = re.search(r">=\s*3\.(\d+)", python)
        newer = f'; python_version >= "3.{needs[1]}"' if needs and int(needs[1]) > 10 else ""
        lines.append(f"{dist.name}=={dist.version}{newer}")
    torch = importlib.metadata.version("torch").partition("+")[0]
    print(HEADER + f"torch=={torch}\n" + "\n".join(sorted(lines, key=str.lower)))


if __name__ == "__main__":
    main()
