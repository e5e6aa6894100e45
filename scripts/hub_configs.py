"""Writes the named configs of the library, as the hub knows them without importing it."""

from __future__ import annotations

import json
from pathlib import Path

from adapters.methods.presets import ADAPTER_CONFIG_MAP, DEPRECATED_IDENTIFIERS

TARGET = Path(__file__).parents[1] / "src/adapterhub/data/configs.json"


def main() -> None:
    """Every current name with its config, and the old names with the current ones."""
    configs = {
        name: config.to_dict() for name, config in ADAPTER_CONFIG_MAP.items() if name not in DEPRECATED_IDENTIFIERS
    }
    TARGET.write_text(json.dumps({"configs": configs, "aliases": DEPRECATED_IDENTIFIERS}, indent=1) + "\n")
    print(len(configs), "configs")


if __name__ == "__main__":
    main()
