"""What can go wrong, as exceptions that say what was given, what is allowed and what to do next.

    AdapterError
    +-- ConfigError           (ValueError)   a method's hyperparameters, a config name or a config string
    +-- AdapterNameError      (ValueError)   a name that is empty, malformed, taken or unknown
    +-- CompositionError      (ValueError)   blocks that do not fit each other, the batch or the sequence
    |   +-- SizeError         (IndexError)   sizes that do not add up to the batch or the sequence
    +-- UnsupportedError      (ValueError)   a method, block or head that this model cannot carry
    +-- MergeError            (ValueError)   weights that cannot be folded or averaged as asked
    +-- HeadError             (ValueError)   an unknown, duplicate or unsuitable prediction head
    +-- CheckpointError       (ValueError)   files with missing, extra, mis-shaped or unreadable tensors
    +-- CheckpointNotFound    (OSError)      no adapter at the place that was named
    +-- ShardingError         (RuntimeError) parameters that are spread over processes, and cannot be brought together
    +-- HubError              (OSError)      a hub could not be reached, or refused
    +-- EnvironmentConflict   (ImportError)  another distribution owns the import name `adapters`

Every class is also the builtin that a caller would expect: `except ValueError` catches a ConfigError.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdapterError(Exception):
    """Base of all errors that this library raises on purpose."""


class ConfigError(AdapterError, ValueError):
    """A config name, string, field or value is not valid."""


class AdapterNameError(AdapterError, ValueError):
    """An adapter or fusion name is empty, malformed, already taken or unknown."""


class CompositionError(AdapterError, ValueError):
    """A composition names unknown adapters, nests blocks that have no meaning, or does not fit the input."""


class SizeError(CompositionError, IndexError):
    """The sizes of `BatchSplit` or `Split` do not add up to the rows or positions that there are."""


class UnsupportedError(AdapterError, ValueError):
    """A method, block or head was asked of a model that cannot carry it."""


class MergeError(AdapterError, ValueError):
    """Adapters cannot be merged into the base weights, or averaged, as asked."""


class HeadError(AdapterError, ValueError):
    """A prediction head is unknown, exists already or does not suit the model."""


class CheckpointError(AdapterError, ValueError):
    """A file holds missing, unexpected, mis-shaped or unreadable tensors, or belongs to another model."""


class CheckpointNotFound(AdapterError, OSError):
    """Nothing that can be loaded lies at the given place."""


class ShardingError(AdapterError, RuntimeError):
    """Parameters are spread over processes in a way that does not allow what was asked."""


class HubError(AdapterError, OSError):
    """A hub could not be reached, or refused what was asked of it."""


class EnvironmentConflict(AdapterError, ImportError):
    """Another installed distribution provides the same import name."""


def choices(given: object, allowed: Iterable[object]) -> str:
    """`It has: a, b, c. Did you mean 'b'?` -- the part of a message that helps with a misspelt name."""
    names = [str(name) for name in allowed]
    if not names:
        return "There are none yet."
    close = difflib.get_close_matches(str(given), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Allowed: {', '.join(names)}.{hint}"
