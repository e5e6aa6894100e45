"""How is the attention of AdapterFusion built? Its config and the two presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from adapters.composition.block_config import BlockConfig
from adapters.methods.config import Rule, flag, nothing, probability


@dataclass(eq=False)
class AdapterFusionConfig(BlockConfig):
    """Hyperparameters of one AdapterFusion layer.

        out = sum_i softmax_i((W_q h) . (W_k u_i) / T) W_v u_i

    Paper: Pfeiffer et al. 2021, arXiv:2005.00247.

    Args:
        key: Project the adapters' outputs to keys; without, they are the keys.
        query: Project the hidden state to a query; without, it is the query.
        value: Project the adapters' outputs to values; without, they are the values.
        query_before_ln: Take the query before the layer's norm.
        regularization: Kept for files. The loss that keeps W_v near the identity is the trainer's.
        residual_before: Add the residual to the values instead of to the output.
        temperature: Divide the scores by a number that falls from 50 to 1.
        value_before_softmax: Project values before mixing them.
        value_initialized: Start W_v as the identity.
        dropout_prob: Probability in [0, 1], applied to the attention; None takes the model's.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    key: bool
    query: bool
    value: bool
    query_before_ln: bool
    regularization: bool
    residual_before: bool
    temperature: bool
    value_before_softmax: bool
    value_initialized: bool
    dropout_prob: float | None = None

    noun: ClassVar[str] = "fusion"
    rules: ClassVar[Mapping[str, Rule]] = {
        "key": flag,
        "query": flag,
        "value": flag,
        "query_before_ln": flag,
        "regularization": flag,
        "residual_before": flag,
        "temperature": flag,
        "value_before_softmax": flag,
        "value_initialized": flag,
        "dropout_prob": nothing | probability,
    }

    @classmethod
    def load(cls, config: Any = None, **kwargs: Any) -> AdapterFusionConfig:
        """Finds a fusion config by whatever names it.

        Args:
            config: A fusion config, its dict, "dynamic" or "static"; by default "dynamic".
            kwargs: Fields to change in the config; those that are None are ignored.
        Raises:
            ConfigError: nothing is known under this name, or a value is not allowed.
        """
        return AdapterFusionConfig.found(config, ADAPTERFUSION_CONFIG_MAP, DEFAULT_ADAPTERFUSION_CONFIG, kwargs)


@dataclass(eq=False)
class StaticAdapterFusionConfig(AdapterFusionConfig):
    """Fusion without value matrix: mixes the adapters' outputs as they are. See `AdapterFusionConfig`."""

    key: bool = True
    query: bool = True
    value: bool = False
    query_before_ln: bool = False
    regularization: bool = False
    residual_before: bool = False
    temperature: bool = False
    value_before_softmax: bool = True
    value_initialized: bool = False


@dataclass(eq=False)
class DynamicAdapterFusionConfig(AdapterFusionConfig):
    """Fusion with a value matrix that starts as the identity. See `AdapterFusionConfig`."""

    key: bool = True
    query: bool = True
    value: bool = True
    query_before_ln: bool = False
    regularization: bool = True
    residual_before: bool = False
    temperature: bool = False
    value_before_softmax: bool = True
    value_initialized: bool = True


ADAPTERFUSION_CONFIG_MAP: dict[str, AdapterFusionConfig] = {
    "static": StaticAdapterFusionConfig(),
    "dynamic": DynamicAdapterFusionConfig(),
}
DEFAULT_ADAPTERFUSION_CONFIG = "dynamic"
