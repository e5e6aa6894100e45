"""How do fusions get into folders and out of them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapters.checkpoint import bundles
from adapters.checkpoint.atomic import saving
from adapters.checkpoint.layout import FUSION, PathLike, subfolder
from adapters.composition.blocks import Fuse
from adapters.hub.locate import locate
from adapters.verbs.base import Verbs
from adapters.verbs.lifecycle import fusion_names


class FusionFileVerbs(Verbs):
    """Saving and loading fusions."""

    def save_adapter_fusion(
        self,
        save_directory: PathLike,
        adapter_names: Fuse | Sequence[str] | str,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: bool = True,
        with_head: bool | str = False,
    ) -> None:
        """Save a fusion's layers; save the adapters that it fuses apart.

        Args:
            save_directory: Folder to save in; it is made.
            adapter_names: The fusion: its name, its block or the names of its adapters.
            meta_dict: More entries for adapter_fusion_config.json.
            custom_weights_loaders: Objects whose `save(save_directory, name)` is called too.
            use_safetensors: Write safetensors, or else a pickle file.
            with_head: Save a head too: the one of this name, or with True the one called like the fusion.
        Raises:
            AdapterNameError: there is no such fusion.
        """
        _, name = fusion_names(adapter_names, None)
        options = (meta_dict, custom_weights_loaders, use_safetensors, with_head)
        bundles.save_fusion(self, save_directory, name, *options)

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
        folder = locate(adapter_fusion_name_or_path, FUSION, use_safetensors=use_safetensors, **kwargs)
        options = bundles.Loading(load_as, set_active, use_safetensors, strict, loading_info, custom_weights_loaders)
        return bundles.load_fusion(self, folder, options, with_head)

    def save_all_adapter_fusions(
        self,
        save_directory: PathLike,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: bool = True,
    ) -> None:
        """Save every fusion in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            meta_dict, custom_weights_loaders, use_safetensors: As for `save_adapter_fusion`.
        """
        with saving(save_directory) as folder:
            for name in self._engine.fusions:
                options = (meta_dict, custom_weights_loaders, use_safetensors)
                self.save_adapter_fusion(subfolder(folder, name), name, *options)
