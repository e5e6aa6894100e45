"""What the contract tests enumerate: a small config of every preset, and which architectures can carry it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import adapters
from adapters import ConfigUnion
from adapters.errors import UnsupportedError
from adapters.methods import METHODS
from adapters.methods.base import AffineAdapter
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.presets import ADAPTER_CONFIG_MAP, DEPRECATED_IDENTIFIERS
from tests.tiny import TINY_MODELS, build

SMALL: dict[str, Any] = {
    "reduction_factor": 4,
    "prefix_length": 3,
    "bottleneck_size": 8,
    "prompt_length": 3,
    "r": 4,
    "vector_length": 8,
    "num_vectors": 7,
    "block_size": 8,
    "token_indices": [*range(2, 40)],
}
"""Sizes that fit hidden size 32."""

NO_RANDOMNESS: dict[str, Any] = {"dropout": 0.0, "stochastic_depth": 0.0}


def small(config: Any) -> Any:
    """`config` in small, and without dropout."""
    if isinstance(config, ConfigUnion):
        return ConfigUnion(*map(small, config.configs))
    changes = {name: value for name, value in {**SMALL, **NO_RANDOMNESS}.items() if name in config}
    if config.get("composition_mode") == "scale":
        del changes["r"]
    if config.get("architecture") == "randlora":
        changes["alpha"] = 8  # its default is made for wide layers
    return config.replace(**changes) if changes else config


def handled(config: Any) -> bool:
    """Whether METHODS has a method for every part of `config`."""
    members = config.configs if isinstance(config, ConfigUnion) else [config]
    return all(any(method.handles(member) for method in METHODS) for member in members)


PRESETS = {name: small(config) for name, config in ADAPTER_CONFIG_MAP.items() if name not in DEPRECATED_IDENTIFIERS}
CONFIGS: dict[str, Any] = {
    **{name: config for name, config in PRESETS.items() if handled(config)},
    "adapter_plus": small(adapters.AdapterPlusConfig()),
    "lora_everywhere": adapters.LoRAConfig(
        r=4, alpha=6, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True
    ),
    "ia3_everywhere": adapters.IA3Config(attn_matrices=["q", "k", "v"], output_lora=True),
    "ia3_paper": adapters.IA3Config(places=["attn.k", "attn.v", "ffn.down.in"]),
    "loreft_ends": small(adapters.LoReftConfig(prefix_positions=2, suffix_positions=2)),
    "double_seq_bn_cross": small(adapters.DoubleSeqBnConfig(cross_adapter=True)),
}
"""Readable name -> config of every kind of adapter that the library can build."""


def members(config: Any) -> list[Any]:
    """The configs of a union, or the config itself."""
    return list(config.configs) if isinstance(config, ConfigUnion) else [config]


def methods_of(name: str) -> list[type[Any]]:
    """The methods that a config of `CONFIGS` is made of."""
    return [method for member in members(CONFIGS[name]) for method in METHODS if method.handles(member)]


def made_of(kind: type[Any]) -> tuple[str, ...]:
    """The configs all of whose methods are of this kind."""
    return tuple(name for name in CONFIGS if all(issubclass(method, kind) for method in methods_of(name)))


MERGEABLE, BOTTLENECKS = made_of(AffineAdapter), made_of(Bottleneck)
LENGTHENING = ("prompt_tuning",)
WITHOUT_BIAS = ("llama", "mistral", "qwen3", "t5", "t5-gated", "mt5")
FUSED = tuple(
    name for name in CONFIGS if all(not method.unmixable or method.fuses_as_first for method in methods_of(name))
)
"""The configs whose outputs `Fuse` can mix."""

ONE_OF_EACH = (
    "seq_bn",
    "double_seq_bn",
    "par_bn",
    "adapter_plus",
    "compacter",
    "seq_bn_inv",
    "prefix_tuning",
    "prompt_tuning",
    "lora_everywhere",
    "dora",
    "ia3",
    "ia3_paper",
    "vera",
    "mtl_lora",
    "loha",
    "lokr",
    "randlora",
    "vblora",
    "adalora",
    "oft",
    "bitfit",
    "ln_tuning",
    "low_rank_bn",
    "trainable_tokens",
    "loreft_ends",
    "unipelt",
)
"""One config per way of computing, for what costs more."""

REPRESENTATIVE = ("bert", "electra", "gpt2", "llama", "t5", "bart", "mbart", "vit")
"""One architecture per layout, for what costs more."""


def refusal(method: str, name: str) -> str | None:
    """Why an architecture cannot carry a config, None if it can. Written down, so that a change shows."""
    tiny = TINY_MODELS[name]
    if method.startswith("bitfit") and name in WITHOUT_BIAS:
        return "no module of its layers has a bias"
    if method == "bitfit_subset" and name == "qwen2":
        return "only its queries, keys and values have a bias"
    if method.endswith("_inv") and tiny.kind == "image":
        return "images have no token embeddings to invert"
    if method == "trainable_tokens" and tiny.kind == "image":
        return "images have no table of token embeddings"
    return None


def pairs(
    methods: Any = None, names: Any = None, carried: bool = True, where: Callable[[str, str], bool] | None = None
) -> list[Any]:
    """pytest parameters (method, architecture) with ids such as "lora-bert"."""
    return [
        pytest.param(method, name, id=f"{method}-{name}")
        for method in methods or CONFIGS
        for name in names or TINY_MODELS
        if (refusal(method, name) is None) == carried and (where is None or where(method, name))
    ]


def every_pair(**kwargs: Any) -> Any:
    """Decorator: run a test on each pair of method and architecture that go together."""
    return pytest.mark.parametrize(("method", "name"), pairs(**kwargs))


def carrying(name: str, *methods: str, task: str = "base", names: tuple[str, ...] = ("a", "b", "c"), **kw: Any) -> Any:
    """A tiny model with an adapter of each method, called a, b, c; one of them starts the same in every model."""
    model = build(name, task, **kw)
    for i, (adapter, method) in enumerate(zip(names, methods)):
        torch.manual_seed(i)
        model.add_adapter(adapter, config=CONFIGS[method])
    return model


__all__ = ["CONFIGS", "PRESETS", "UnsupportedError", "carrying", "every_pair", "handled", "pairs", "refusal"]
