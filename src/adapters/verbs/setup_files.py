"""How do whole set-ups get into folders and out of them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapters.checkpoint import setup
from adapters.checkpoint.layout import SETUP_FILE, Files, PathLike
from adapters.hub.locate import locate
from adapters.verbs.base import Verbs


class SetupFileVerbs(Verbs):
    """Saving and loading a composition with all that it names."""

    def save_adapter_setup(
        self,
        save_directory: PathLike,
        adapter_setup: Any,
        head_setup: Any = None,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: Files = True,
    ) -> None:
        """Save a composition with all adapters, fusions and heads in it, each in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            adapter_setup: A block, or an adapter's name.
            head_setup: Heads to save: a name, a list or block of names, True for the head of a plain class.
            meta_dict: More entries for adapter_setup.json.
            custom_weights_loaders, use_safetensors: As for `save_adapter`.
        """
        options = {"custom_weights_loaders": custom_weights_loaders, "use_safetensors": use_safetensors}
        setup.save_setup(self, save_directory, adapter_setup, head_setup, meta_dict, **options)

    def load_adapter_setup(
        self,
        adapter_setup_name_or_path: PathLike,
        version: str | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        set_active: bool = False,
        use_safetensors: bool = True,
        strict: bool = True,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Load a composition with all adapters, fusions and heads in it.

        Args:
            adapter_setup_name_or_path: As for `load_adapter`.
            version: Branch, tag or commit of the repository.
            custom_weights_loaders, use_safetensors, strict, kwargs: As for `load_adapter`.
            set_active: Activate the composition and its heads.
        Returns:
            The composition, and the heads that go with it: a name, a list, a block, True for a plain class's, or None.
        Raises:
            CheckpointNotFound: a part of it is not there (an OSError).
            CheckpointError: a part of it does not fit. What was added is removed again.
        """
        folder = locate(adapter_setup_name_or_path, SETUP_FILE, version, use_safetensors=use_safetensors, **kwargs)
        options: dict[str, Any] = {"use_safetensors": use_safetensors, "strict": strict}
        if custom_weights_loaders:
            options["custom_weights_loaders"] = custom_weights_loaders
        return setup.load_setup(self, folder, set_active, **options)
