"""How do prediction heads get into folders and out of them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.checkpoint import heads
from adapters.checkpoint.layout import HEAD, Files, PathLike, subfolder
from adapters.checkpoint.together import saving_of
from adapters.checkpoint.undo import Before
from adapters.hub.locate import locate
from adapters.verbs.base import Verbs


class HeadFileVerbs(Verbs):
    """Saving and loading prediction heads."""

    def save_head(self, save_directory: PathLike, head_name: str | None = None, use_safetensors: Files = True) -> None:
        """Save a prediction head.

        Args:
            save_directory: Folder to save in; it is made.
            head_name: The head; by default the active one. A plain class has only one.
            use_safetensors: Write safetensors (True), a pickle file (False), or "both".
        Raises:
            HeadError: there is no such head.
        """
        with saving_of(self, save_directory) as folder:
            heads.write_head(self, folder, head_name, None, use_safetensors)

    def load_head(
        self,
        save_directory: PathLike,
        load_as: str | None = None,
        id2label: Mapping[int, str] | None = None,
        set_active: bool = True,
        use_safetensors: bool = True,
        num_labels: int | None = None,
        strict: bool = True,
        loading_info: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Load a prediction head.

        Args:
            save_directory: As for `load_adapter`.
            load_as: Name in this model; by default the one it was saved with. Plain classes' heads have none.
            id2label: Names of the labels, instead of the stored ones.
            set_active: Activate the head.
            num_labels: Labels, a count, of a plain class's head that becomes a flexible one; by default as stored.
            use_safetensors, strict, loading_info, kwargs: As for `load_adapter`.
        Returns:
            The head's name; None for the head of a plain class.
        Raises:
            CheckpointNotFound: there is nothing to load (an OSError).
            HeadError: this model cannot have the head.
            CheckpointError: tensors are missing, unexpected or of another shape. The model is as it was.
        """
        folder = locate(save_directory, HEAD, use_safetensors=use_safetensors, **kwargs)
        options = (id2label, num_labels, use_safetensors, set_active, strict, loading_info)
        with Before(self) as before:
            return heads.load_head(self, folder, before, load_as, *options)

    def save_all_heads(self, save_directory: PathLike, use_safetensors: Files = True) -> None:
        """Save every flexible head in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            use_safetensors: Write safetensors (True), pickle files (False), or "both".
        """
        with saving_of(self, save_directory) as folder:
            for name in getattr(self, "heads", ()):
                self.save_head(subfolder(folder, name), name, use_safetensors)
