"""Tests mirror `src/`: `tests/<folder>/test_<file>.py` asks about `src/adapters/<folder>/<file>.py`."""
