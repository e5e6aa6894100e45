"""How do adapters, fusions, heads, set-ups and whole models get to disk and back? `layout.py` is the format."""
