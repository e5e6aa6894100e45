"""Which adapters does a training script add, load and train? Command line arguments, and the set-up they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.composition.blocks import Stack
from adapters.errors import ConfigError
from adapters.methods.config import AdapterConfig


@dataclass
class AdapterArguments:
    """Arguments about adapters for scripts that use `transformers.HfArgumentParser`.

    Args:
        train_adapter: Train an adapter instead of the whole model.
        load_adapter: Folder or hub repository of an adapter from which training starts; empty for a new one.
        adapter_config: Config of a new adapter: a name, a config string or a JSON file.
        load_lang_adapter: Folder or hub repository of a language adapter below the trained one; None for none.
        lang_adapter_config: Accepted and not used: a stored adapter has its own config.
    """

    train_adapter: bool = field(default=False, metadata={"help": "Train an adapter instead of the whole model."})
    load_adapter: str | None = field(
        default="", metadata={"help": "Folder or hub repository of an adapter from which training starts."}
    )
    adapter_config: str | None = field(
        default="seq_bn", metadata={"help": "Config of a new adapter: a name, a config string or a JSON file."}
    )
    load_lang_adapter: str | None = field(
        default=None, metadata={"help": "Folder or hub repository of a language adapter below the trained one."}
    )
    lang_adapter_config: str | None = field(
        default=None, metadata={"help": "Not used: a stored adapter has its own config."}
    )


def setup_adapter_training(
    model: Any,
    adapter_args: AdapterArguments,
    adapter_name: str,
    adapter_config_kwargs: Mapping[str, Any] | None = None,
    adapter_load_kwargs: Mapping[str, Any] | None = None,
) -> tuple[str | None, str | None]:
    """Add or load what the arguments ask for, freeze the base model and activate `Stack(language, task)`.

    Args:
        model: A model with adapters.
        adapter_args: What to train.
        adapter_name: Name of the adapter that is trained. If it exists already, it is trained further.
        adapter_config_kwargs: Fields to change in the config of a new adapter.
        adapter_load_kwargs: Arguments of `load_adapter`.
    Returns:
        Names of the trained adapter and of the language adapter; None for what there is not.
    Raises:
        ConfigError: an adapter is to be loaded, but none to be trained.
    """
    if not adapter_args.train_adapter:
        if given := adapter_args.load_adapter or adapter_args.load_lang_adapter:
            raise ConfigError(
                f"{given!r} is to be loaded, but train_adapter is False: the whole model would be trained. "
                "Set train_adapter (--train_adapter), or leave load_adapter and load_lang_adapter out."
            )
        return None, None
    options = dict(adapter_load_kwargs or {})
    if adapter_args.load_adapter:
        model.load_adapter(adapter_args.load_adapter, load_as=adapter_name, **options)
    elif adapter_name not in model.adapters_config:
        config = AdapterConfig.load(adapter_args.adapter_config, **(adapter_config_kwargs or {}))
        model.add_adapter(adapter_name, config=config)
    language: str | None = None
    if adapter_args.load_lang_adapter:
        language = model.load_adapter(adapter_args.load_lang_adapter, **options)
    model.train_adapter(adapter_name)
    model.set_active_adapters(adapter_name if language is None else Stack(language, adapter_name))
    return adapter_name, language
