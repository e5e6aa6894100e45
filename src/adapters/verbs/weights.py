"""What happens to weights that are there? Merging, sharing, ejecting, moving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adapters.methods.derived import refresh
from adapters.runtime import merging, sharing
from adapters.verbs.base import Verbs


class WeightVerbs(Verbs):
    """Merging, sharing, ejecting and moving weights."""

    def merge_adapter(self, name: str) -> None:
        """Fold an adapter of linear maps (LoRA, DoRA, IA3) into the base weights.

        It stays there until `reset_adapter`, whatever is activated or trained on top of it. A set-up may name it beside
        others only where that computes the same as before it was merged; else the others alone, on top of the merged
        weights.

        Raises:
            MergeError: it cannot be folded into these weights, another one is merged, or the active set-up would
                compute something else. Nothing has changed.
        """
        merging.merge(self._engine, name)

    def reset_adapter(self, name: str | None = None) -> None:
        """Take the merged adapter out of the base weights again, exactly.

        Args:
            name: Do so only if this one is merged.
        """
        if name is not None:
            self._engine.require(name)
        merging.unmerge(self._engine, name)

    def share_parameters(
        self, adapter_names: Sequence[str], name: str | None = None, reference_adapter_name: str | None = None
    ) -> None:
        """Let multi-task adapters (`mtl_lora`) use one set of A and B.

        Args:
            adapter_names: The adapters.
            name: Name of what they share; by default their names joined by commas.
            reference_adapter_name: Whose values they start from; by default the first one's.
        """
        sharing.share(self._engine, adapter_names, name or ",".join(adapter_names), reference_adapter_name)

    def unshare_parameters(self, name: str) -> None:
        """Give every adapter a copy of its own of what it shares under `name`."""
        sharing.unshare(self._engine, name)

    def eject_prefix_tuning(self, name: str) -> None:
        """Replace the reparametrisation of a prefix by the keys and values it makes."""
        self._engine.eject(name)

    def adapter_to(self, name: str, device: Any = None, dtype: torch.dtype | None = None) -> None:
        """Move an adapter to a device or dtype."""
        self._engine.require(name)
        for part in self._engine.parts[name]:
            part.module.to(device=device, dtype=dtype)

    def refresh_adapters(self) -> None:
        """Compute anew what is kept between calls because it follows from weights alone, such as DoRA's norms.

        Needed only after weights were written through `.data` in a way that cannot be noticed: outside of the CPU, or
        in a few entries. Optimizers, `load_state_dict`, in-place operations and assignments are noticed.
        """
        refresh()
