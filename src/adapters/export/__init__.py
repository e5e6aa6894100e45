"""Adapters for other engines: as LoRA of one rank, in the files that these read."""
