"""What Transformers gives every model, for modules of torch that are none of its models."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from adapters.errors import UnsupportedError


class PlainModule:
    """Stands between the verbs and the class of a plain `nn.Module`. Its config only names its class."""

    base_model_prefix = ""

    @property
    def base_model(self) -> Any:
        """The module itself: it has no heads that adapters know of."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Raises NotImplementedError: nothing says which module they are."""
        raise NotImplementedError(f"{type(self).__name__} does not say which module its input embeddings are.")

    def get_output_embeddings(self) -> None:
        """None: as above."""


def prepare(module: nn.Module) -> None:
    """Give a module a config, as adapters and their files name a type of model.

    Raises:
        UnsupportedError: it has an attribute `config` of its own.
    """
    config: Any = getattr(module, "config", None)
    if config is not None and not isinstance(getattr(config, "model_type", None), str):
        raise UnsupportedError(
            f"The attribute config of {type(module).__name__} is a {type(config).__name__} without model_type. Call it "
            "otherwise, or give it the attribute model_type, a name for models of this class."
        )
    if config is None:
        named = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(module).__name__).lower()
        given: Any = PretrainedConfig()
        given.model_type = named
        module.config = given
