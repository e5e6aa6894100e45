"""How does a whole model travel with its adapters?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn.modules.module import _IncompatibleKeys

from adapters.checkpoint import full_model
from adapters.checkpoint.layout import PathLike
from adapters.verbs.base import Verbs


class ModelFileVerbs(Verbs):
    """Saving and loading whole models, as Transformers and torch do it."""

    full_checkpoints: bool = False
    """Whether a Trainer keeps the full model in its checkpoints. By default they hold what trains: adapters, fusions,
    heads, embeddings, if the base model is frozen."""

    _keys_to_ignore_on_load_unexpected: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited = getattr(super(), "_keys_to_ignore_on_load_unexpected", None)
        if "_keys_to_ignore_on_load_unexpected" not in vars(cls):
            cls._keys_to_ignore_on_load_unexpected = [*(inherited or ()), *full_model.OURS]

    def save_pretrained(
        self,
        save_directory: PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = True,
        **kwargs: Any,
    ) -> None:
        """As in Transformers; the folder also holds all adapters, fusions and heads.

        A Trainer that calls this gets what trains alone (docs/training.md), unless `full_checkpoints` is set.

        Open it with `AutoAdapterModel.from_pretrained`, or with `adapters.load_model` as a plain class.
        """
        options = dict(kwargs, is_main_process=is_main_process, push_to_hub=push_to_hub, variant=variant, token=token)
        options |= {"max_shard_size": max_shard_size, "save_peft_format": save_peft_format}
        options |= {"state_dict": state_dict, "save_original_format": save_original_format}
        full_model.save_pretrained(self, super().save_pretrained, save_directory, options)  # type: ignore[misc]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in torch. Tensors may also have their names in files, by which the HF Trainer gives them back.

        Args:
            state_dict: Tensors by name.
            args, kwargs: As in torch.
        """
        if full_model.load_trained(self):
            return _IncompatibleKeys([], [])
        named = full_model.with_module_names(self, state_dict)
        return super().load_state_dict(named, *args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """As in torch, which calls it for a module inside of another, such as one that `torch.compile` returns."""
        if prefix and full_model.load_trained(self):
            own = self.state_dict()  # type: ignore[attr-defined]
            state_dict.update({f"{prefix}{name}": tensor for name, tensor in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As in Transformers; adapters and fusions that the folder holds are added with their weights.

        Args:
            pretrained_model_name_or_path: Folder or hub repository.
            model_args: As in Transformers.
            kwargs: As in Transformers.
        """
        parent = super().from_pretrained  # type: ignore[misc]
        return full_model.from_pretrained(cls, parent, pretrained_model_name_or_path, model_args, kwargs)
