"""Routing among adapters: the life of the gates that `Route` blocks own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.checkpoint.bundles import Loading
from adapters.checkpoint.layout import Files, PathLike
from adapters.composition.blocks import Route
from adapters.verbs.owned import OwnedVerbs

Routed = Route | Sequence[str | None] | str


class RoutingVerbs(OwnedVerbs):
    """Adding, training, saving, loading and deleting the gates of `Route` blocks."""

    def add_adapter_routing(
        self,
        adapter_names: Routed,
        config: Any = None,
        name: str | None = None,
        overwrite_ok: bool = False,
        set_active: bool = False,
    ) -> None:
        """Add gates at all places where one of some adapters acts.

        Args:
            adapter_names: A `Route` block, a list of names and None ("no adapter"), or names joined by commas.
            config: 'token' (default), 'sequence', a RoutingConfig or its dict. Of a block, `by` and `top_k` count.
            name: Name of the gates; by default the adapters' names joined by commas.
            overwrite_ok: Replace gates of the same name.
            set_active: Activate the block.
        Raises:
            AdapterNameError: an adapter does not exist, or the name is malformed or taken.
            ConfigError: the config is not valid, contradicts the block, or the block has no weights (by='arrow').
        """
        self._add_owned("routing", adapter_names, config, name, overwrite_ok, set_active)

    def delete_adapter_routing(self, adapter_names: Routed) -> None:
        """Remove gates. Does nothing if there are none of this name."""
        self._delete_owned("routing", adapter_names)

    def train_adapter_routing(self, adapter_setup: Any, unfreeze_adapters: bool = False) -> None:
        """Freeze base model and adapters, let the gates of `adapter_setup` train, and activate it.

        Args:
            adapter_setup: A `Route` block, or a block that holds some.
            unfreeze_adapters: Let the adapters train too.
        """
        self._train_owned("routing", adapter_setup, unfreeze_adapters)

    def get_routing_balance_loss(self) -> Tensor | float:
        """Sum over all places of balance * n * sum_i f_i P_i, of the last call of this model in training.

        f_i is the share of the tokens (sequences) that chose adapter i, P_i the mean of its probability, over all of n;
        `balance` is that of the RoutingConfig. 0 where that is 0, and after calls without gradients. `AdapterTrainer`
        adds it to the loss. Paper: Fedus et al. 2021, arXiv:2101.03961.

        Raises:
            UnsupportedError: gradient checkpointing re-enters backward, so that the loss would have no gradient.
        """
        loss: Tensor | float = self._engine.owned["routing"].auxiliary_loss()
        return loss

    def adapter_routing_to(self, adapter_names: Routed, device: Any = None, dtype: torch.dtype | None = None) -> None:
        """Move gates to a device or dtype."""
        self._owned_to("routing", adapter_names, device, dtype)

    def save_adapter_routing(
        self,
        save_directory: PathLike,
        adapter_names: Routed,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: Files = True,
        with_head: bool | str = False,
    ) -> None:
        """Save gates; save the adapters among which they choose apart.

        Args:
            save_directory: Folder to save in; it is made.
            adapter_names: The gates: their name, their block or the names of the adapters.
            meta_dict: More entries for adapter_routing_config.json.
            custom_weights_loaders: Objects whose `save(save_directory, name)` is called too.
            use_safetensors: Write safetensors (True), a pickle file (False), or "both".
            with_head: Save a head too: the one of this name, or with True the one called like the gates.
        Raises:
            AdapterNameError: there are no such gates.
        """
        options = (meta_dict, custom_weights_loaders, use_safetensors, with_head)
        self._save_owned("routing", save_directory, adapter_names, *options)

    def load_adapter_routing(
        self,
        adapter_routing_name_or_path: PathLike,
        load_as: str | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        set_active: bool = False,
        use_safetensors: bool = True,
        with_head: bool = True,
        strict: bool = True,
        loading_info: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """Load gates. The adapters among which they choose must have been added before, under their names.

        Args:
            adapter_routing_name_or_path: As for `load_adapter`.
            load_as: Name in this model; by default the one they were saved with.
            custom_weights_loaders, use_safetensors, strict, loading_info, kwargs: As for `load_adapter`.
            set_active: Activate their block.
            with_head: Load the head that lies beside them.
        Returns:
            Their name in this model.
        Raises:
            CheckpointNotFound: there is nothing to load (an OSError).
            CheckpointError: tensors are missing, unexpected or of another shape. The model is as it was.
        """
        options = Loading(load_as, set_active, use_safetensors, strict, loading_info, custom_weights_loaders)
        return self._load_owned("routing", adapter_routing_name_or_path, options, with_head, kwargs)

    def save_all_adapter_routings(
        self,
        save_directory: PathLike,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: Files = True,
    ) -> None:
        """Save the gates of every `Route` block in a sub-folder of their name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            meta_dict, custom_weights_loaders, use_safetensors: As for `save_adapter_routing`.
        """
        self._save_all_owned("routing", save_directory, meta_dict, custom_weights_loaders, use_safetensors)
