"""The protocol of the Hugging Face hub, as its client speaks it: one file per group of calls."""

from . import accounts, commits, discussions, files, lfs, models, refs, repos, upstream

__all__ = ["routes"]

# What is asked most comes first.
_PARTS = (models, files, accounts, repos, refs, commits, lfs, discussions, upstream)
routes = [route for part in _PARTS for route in part.router.routes]
