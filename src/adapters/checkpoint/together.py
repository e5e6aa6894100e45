"""How do processes that share a model save it? All of them read the tensors, one of them writes the files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from adapters.checkpoint.atomic import nothing, saving
from adapters.checkpoint.layout import PathLike
from adapters.errors import CheckpointError
from adapters.sharding import Sharing, sharing


@contextmanager
def saving_of(model: Any, folder: PathLike, replaces: Callable[[str], bool] = nothing) -> Iterator[Path]:
    """`atomic.saving` of something that belongs to `model`.

    Where the model is sharded, every process has to come here: the first one writes, and the others, whose files go
    nowhere, go on when it has. Otherwise each process that comes here writes, one after the other.

    Raises:
        CheckpointError: as `saving`; or another process could not save.
        ShardingError: the processes are not connected any more.
    """
    shared = sharing(model)
    if shared is None:
        with saving(folder, replaces) as path:
            yield path
        return
    with ExitStack() as stack:
        written: AbstractContextManager[Any] = saving(folder, replaces)
        if not shared.writes:
            written = tempfile.TemporaryDirectory()
        with _all_or_none(shared, folder):
            path = Path(stack.enter_context(written))
        with _all_or_none(shared, folder), stack:
            yield path


@contextmanager
def _all_or_none(shared: Sharing, folder: PathLike) -> Iterator[None]:
    """Raise CheckpointError if something fails in another process; all wait here for each other."""
    failed = True
    try:
        yield
        failed = False
    finally:
        elsewhere = shared.any_of(failed)
    if elsewhere:
        raise CheckpointError(f"Another process could not save {folder}, and says why. Nothing has changed there.")
