"""Fusing adapters: the life of AdapterFusion layers, which `Fuse` blocks own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.checkpoint.bundles import Loading
from adapters.checkpoint.layout import Files, PathLike
from adapters.composition.blocks import Fuse
from adapters.verbs.owned import OwnedVerbs

Fused = Fuse | Sequence[str] | str


class FusionVerbs(OwnedVerbs):
    """Adding, training, saving, loading and deleting fusions."""

    def add_adapter_fusion(
        self,
        adapter_names: Fused,
        config: Any = None,
        name: str | None = None,
        overwrite_ok: bool = False,
        set_active: bool = False,
    ) -> None:
        """Add AdapterFusion layers at all places where some adapters act.

        Args:
            adapter_names: The fused adapters: a `Fuse` block, a list, or names joined by commas.
            config: 'dynamic' (default), 'static', an AdapterFusionConfig or its dict.
            name: Name of the fusion; by default the adapters' names joined by commas.
            overwrite_ok: Replace a fusion of the same name.
            set_active: Activate it.
        Raises:
            AdapterNameError: an adapter does not exist, or the name is malformed or taken.
            ConfigError: the config is not valid, the adapters have no place in common, or outputs of their methods
                cannot be mixed there.
        """
        self._add_owned("fusion", adapter_names, config, name, overwrite_ok, set_active)

    def delete_adapter_fusion(self, adapter_names: Fused) -> None:
        """Remove a fusion. Does nothing if there is none of this name."""
        self._delete_owned("fusion", adapter_names)

    def train_adapter_fusion(self, adapter_setup: Any, unfreeze_adapters: bool = False) -> None:
        """Freeze base model and adapters, let the fusion layers of `adapter_setup` train, and activate it.

        Args:
            adapter_setup: A `Fuse` block, or a block that holds some.
            unfreeze_adapters: Let the fused adapters train too.
        """
        self._train_owned("fusion", adapter_setup, unfreeze_adapters)

    def get_fusion_regularization_loss(self) -> Tensor | float:
        """0.01 * sum of ||I - W_v||^2 over the fusion layers that train."""
        loss: Tensor | float = self._engine.owned["fusion"].auxiliary_loss()
        return loss

    def adapter_fusion_to(self, adapter_names: Fused, device: Any = None, dtype: torch.dtype | None = None) -> None:
        """Move a fusion to a device or dtype."""
        self._owned_to("fusion", adapter_names, device, dtype)

    def save_adapter_fusion(
        self,
        save_directory: PathLike,
        adapter_names: Fused,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: Files = True,
        with_head: bool | str = False,
    ) -> None:
        """Save a fusion's layers; save the adapters that it fuses apart.

        Args:
            save_directory: Folder to save in; it is made.
            adapter_names: The fusion: its name, its block or the names of its adapters.
            meta_dict: More entries for adapter_fusion_config.json.
            custom_weights_loaders: Objects whose `save(save_directory, name)` is called too.
            use_safetensors: Write safetensors (True), a pickle file (False), or "both".
            with_head: Save a head too: the one of this name, or with True the one called like the fusion.
        Raises:
            AdapterNameError: there is no such fusion.
        """
        options = (meta_dict, custom_weights_loaders, use_safetensors, with_head)
        self._save_owned("fusion", save_directory, adapter_names, *options)

    def load_adapter_fusion(
        self,
        adapter_fusion_name_or_path: PathLike,
        load_as: str | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        set_active: bool = False,
        use_safetensors: bool = True,
        with_head: bool = True,
        strict: bool = True,
        loading_info: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """Load a fusion's layers. The adapters that it fuses must have been added before, under their names.

        Args:
            adapter_fusion_name_or_path: As for `load_adapter`.
            load_as: Name in this model; by default the one it was saved with.
            custom_weights_loaders, use_safetensors, strict, loading_info, kwargs: As for `load_adapter`.
            set_active: Activate the fusion.
            with_head: Load the head that lies beside it.
        Returns:
            The fusion's name in this model.
        Raises:
            CheckpointNotFound: there is nothing to load (an OSError).
            CheckpointError: tensors are missing, unexpected or of another shape. The model is as it was.
        """
        options = Loading(load_as, set_active, use_safetensors, strict, loading_info, custom_weights_loaders)
        return self._load_owned("fusion", adapter_fusion_name_or_path, options, with_head, kwargs)

    def save_all_adapter_fusions(
        self,
        save_directory: PathLike,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: Files = True,
    ) -> None:
        """Save every fusion in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            meta_dict, custom_weights_loaders, use_safetensors: As for `save_adapter_fusion`.
        """
        self._save_all_owned("fusion", save_directory, meta_dict, custom_weights_loaders, use_safetensors)
