"""What happens to weights that are there? Merging, sharing, ejecting, moving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from adapters.composition.blocks import MultiTask
from adapters.export import exporting
from adapters.methods.derived import refresh
from adapters.runtime import merging, sharing
from adapters.verbs.base import Verbs
from adapters.verbs.unloading import unload


class WeightVerbs(Verbs):
    """Merging, sharing, ejecting and moving weights."""

    def merge_adapter(
        self, name: str | Sequence[str], weights: float | Sequence[float] | None = None
    ) -> dict[str, float]:
        """Fold an adapter of linear maps or norms (LoRA, DoRA, IA3, ...) into the base weights, or several.

            W <- W + weight * (M - W),    M what the adapter makes of W: for LoRA W + (alpha / r) B A

        It stays there until `reset_adapter`, whatever is activated or trained on top of it; what was trained on top can
        be merged on top. A set-up may name it beside others only where that computes the same as before it was merged;
        else the others alone, on top of the merged weights. Quantised weights are unpacked, changed and quantised
        again, and the log says what that costs.

        Args:
            name: An adapter; or all that are to be in the weights, each of which is folded into what those before it
                have made. What is merged already comes first.
            weights: How much of it, or of each of them; by default 1.
        Returns:
            For quantised linear maps, by path, what rounding changes relative to the update D of the adapter,
            ||Q(W + D) - (W + D)|| / ||D||; empty for others.
        Raises:
            MergeError: one cannot be folded into these weights, others are merged already, or the active set-up would
                compute something else. Nothing has changed.
        """
        names = [name] if isinstance(name, str) else list(name)
        return merging.merge_all(self._engine, names, _each(weights))

    def reset_adapter(self, name: str | None = None) -> None:
        """Take merged adapters out of the base weights again, exactly.

        Args:
            name: Only this one, if it is merged; by default all. Those that were merged on top of it stay.
        Raises:
            MergeError: the model was saved while it was merged, so the weights from before are not known.
        """
        if name is not None:
            self._engine.require(name)
        merging.unmerge(self._engine, name)

    def merge_and_unload(
        self, name: str | Sequence[str] | None = None, weights: float | Sequence[float] | None = None
    ) -> Any:
        """Make a plain model of this one: adapters go into the weights, and all else of adapters is removed.

        Args:
            name: What to merge on top of what is merged already: an adapter, or several, with `weights`, as of
                `merge_adapter`. By default the active adapter.
            weights: How much of it, or of each of them; by default 1.
        Returns:
            This model. It has the class that it had before `adapters.init`, and no trace of adapters; an
            `XAdapterModel` has no other class, and keeps its class and heads. What is frozen stays frozen.
        Raises:
            MergeError: an adapter has parts that cannot be folded into weights, or it is not clear which is meant.
                Nothing has changed.
        """
        names = None if name is None else [name] if isinstance(name, str) else list(name)
        return unload(self, names, _each(weights))

    def to_lora(self, name: str, new_name: str, rank: int | None = None) -> dict[str, float]:
        """Add an adapter of low rank that changes the weights as `name` does, or as nearly as its rank allows.

            W' = W + D  ->  W + B A, with B A the best approximation of D of rank r (its largest singular values)

        LoRA of any options, VeRA, VB-LoRA and others whose update is a product stay exact; LoHa and LoKr do if the
        rank is high enough; DoRA, IA3 and OFT change weights in all directions, so `rank` says how near to come. What
        is added to biases is kept (`use_bias`).

        Args:
            name: An adapter that changes linear maps only.
            new_name: The name of the LoRA. It is neither active nor trained.
            rank: r; by default the lowest with which nothing is lost.
        Returns:
            By path of the linear map, ||D - B A|| / ||D||.
        Raises:
            UnsupportedError: it does something else than to change weights and biases of linear maps.
            ConfigError: no rank is given, and no low one is exact.
            MergeError: it is merged, or what it does depends on the input.
        """
        return exporting.to_lora(self, name, new_name, rank)

    def share_parameters(
        self,
        adapter_names: Sequence[str] | MultiTask | str,
        name: str | None = None,
        reference_adapter_name: str | None = None,
    ) -> None:
        """Let multi-task adapters (`mtl_lora`) use one set of A and B.

        Args:
            adapter_names: The adapters: a list, a `MultiTask` block, or names joined by commas.
            name: Name of what they share; by default their names joined by commas.
            reference_adapter_name: Whose values they start from; by default the first one's.
        """
        names = _listed(adapter_names)
        sharing.share(self._engine, names, name or ",".join(names), reference_adapter_name)

    def unshare_parameters(
        self, adapter_names: Sequence[str] | MultiTask | str | None = None, name: str | None = None
    ) -> None:
        """Give every adapter a copy of its own of what it shares with others.

        Args:
            adapter_names: The adapters, as for `share_parameters`; or the name of what they share.
            name: Name of what they share; by default what all of them share.
        Raises:
            AdapterNameError: nothing is shared under this name, or by these adapters.
        """
        if name is None and adapter_names is not None:
            names = _listed(adapter_names)
            joined, shared = ",".join(names), self._engine.shared
            same = next((key for key, members in shared.items() if set(members) == set(names)), joined)
            name = joined if joined in shared else same
        sharing.unshare(self._engine, str(name))

    def set_shared_parameters(self, param: Mapping[str, nn.Module]) -> None:
        """Give the parameters that all places of an adapter share (`base_model.shared_parameters`) other values.

        Args:
            param: Adapter -> module with tensors of the same names and shapes as those that are there.
        Raises:
            AdapterNameError: an adapter does not exist, or has no such parameters. Nothing has changed then.
            ConfigError: the tensors have other names or shapes. Nothing has changed then.
        """
        sharing.set_shared(self._engine, param)

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


def _each(weights: float | Sequence[float] | None) -> Sequence[float] | None:
    """One weight per adapter, also if there is one."""
    return [weights] if isinstance(weights, int | float) else weights


def _listed(adapters: Sequence[str] | MultiTask | str) -> list[str]:
    """The names of some adapters, from a list, a block, or names joined by commas."""
    return adapters.split(",") if isinstance(adapters, str) else [str(name) for name in adapters]
