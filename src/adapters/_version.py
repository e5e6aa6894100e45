"""The version of this library, and of the files that it writes.

It begins at 2: readers take LoRA's alpha for r in files that say `adapters.` and a version below 1.1.
"""

__version__ = "2.0.0"
