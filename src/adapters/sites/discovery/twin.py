"""A small model of the same structure: the same class, layers, heads and flags, with narrower matrices."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

from adapters.sites.discovery.trace import plain_class

SMALL = 4_000_000
"""Parameters up to which a model is its own twin: its config is taken as it is."""

LARGEST = 10 * SMALL
"""Parameters that a twin may have where smaller ones cannot be built or run."""

WIDTHS = re.compile(
    r"(.*_)?(hidden_size|hidden_sizes|hidden_dim|hidden_act_dim|d_model|n_embd|embed_dim|embed_dims|embedding_size|dim|d_ff|d_kv|"
    r"d_inner|n_inner|ffn_dim|intermediate_size|inner_dim|mlp_dim|head_dim|head_size|kv_channels|rotary_dim|lora_rank|"
    r"width|projection_size|num_features|conv_dim|proj_dim|projection_dim|output_dim|input_dim|ffn_hidden_size|d_head|d_embed|true_hidden_size|"
    r"intra_bottleneck_size|feature_size|dim_feedforward|word_embed_proj_dim|backbone_channels|mamba_d_ssm)"
)
HEAD_SIZES = re.compile(r"(.*_)?(head_dim|head_size|kv_channels|d_kv|d_head|rotary_dim)")
HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads", "n_head", "n_heads")
MODELS = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim")
FACTORS = ("short_factor", "long_factor")
"""Lists with one entry for every pair of columns that rotary positions turn."""

TOKEN = re.compile(r".*_token(_id|_index|_ids)?|.*_token_idx")
VOCABULARY = re.compile(r"(.*_)?vocab_size(_per_layer_input)?")
TOKENS = 1024
"""How many tokens a vocabulary has at most: the largest of a config, the next one fewer (some are padded)."""
LIMITS = {re.compile(r"max_source_positions"): 64}
EXPERTS = re.compile(r"num_local_experts|(.*_)?num_experts|n_routed_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k_experts")
"""How many experts there are, and how many a token is given to."""

NARROWEST = 4
"""Width of a head of a twin."""
FILLED = frozenset({"normal_", "uniform_", "erfinv_", "clamp_", "mul_", "add_"})
ROTATED = ("partial_rotary_factor", "rotary_pct")


def size(model: nn.Module) -> int:
    """How many parameters a model has, on whatever device."""
    return sum(parameter.numel() for parameter in model.parameters())


def configs(config: Any) -> Iterator[Any]:
    """A config, and those of its parts."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from configs(value)


def divisor(config: Any) -> int:
    """By what all widths can be divided, so that the narrowest head is still wide enough and turns whole pairs."""
    even = [size for part in configs(config) for size in (*_head_sizes(part), *_turned(part))]
    sections = [n for part in configs(config) for n in _sections(part)]
    heads = [size for part in configs(config) for size in _head_sizes(part)]
    fits = (
        by
        for by in range(64, 1, -1)
        if all(size % (2 * by) == 0 for size in even)
        and min(heads) // by >= NARROWEST
        and not any(n % by for n in sections)
    )
    return next(fits, 1) if heads else 1


def _head_sizes(config: Any) -> list[int]:
    """Widths of heads: as the config says them, or as they follow from it."""
    given = {name: value for name, value in vars(config).items() if type(value) is int and value > 1}
    if explicit := [value for name, value in given.items() if HEAD_SIZES.fullmatch(name)]:
        return explicit
    heads = [value for name in HEADS for value in _numbers(getattr(config, name, None))]
    widths = [value for name in MODELS for value in _numbers(getattr(config, name, None))]
    return [widths[0] // count for count in heads[:1] if widths and count and widths[0] % count == 0]


def _turned(config: Any) -> list[int]:
    """How many columns of a head rotary positions turn, where it is a part of them."""
    rope = getattr(config, "rope_parameters", None)
    places = [config, *([rope, *(v for v in rope.values() if isinstance(v, dict))] if isinstance(rope, dict) else [])]
    found = [
        place.get(name) if isinstance(place, dict) else getattr(place, name, None)
        for place in places
        for name in ROTATED
    ]
    shares = [share for share in found if isinstance(share, float) and 0 < share < 1]
    return [int(head * share) for head in _head_sizes(config) for share in shares]


def _numbers(value: Any) -> list[int]:
    if isinstance(value, bool):
        return []
    return (
        [value] if isinstance(value, int) else [v for v in value if type(v) is int] if isinstance(value, list) else []
    )


def _sections(config: Any) -> list[int]:
    rope = getattr(config, "rope_parameters", None)
    return list(rope.get("mrope_section", ())) if isinstance(rope, dict) else []


def shrunken(config: Any, by: int) -> Any:
    """A copy of a config whose widths are divided by `by`; how many layers and heads there are stays."""
    small = copy.deepcopy(config)
    for part in configs(small):
        tokens, vocabularies = 3, _vocabularies(part)
        for name, value in list(vars(part).items()):
            if name.startswith("_") or isinstance(value, bool):
                continue
            if WIDTHS.fullmatch(name):
                vars(part)[name] = _divided(value, by)
            elif isinstance(value, int) and TOKEN.fullmatch(name) and value >= TOKENS:
                tokens += 1
                vars(part)[name] = TOKENS - tokens
            elif VOCABULARY.fullmatch(name) and value in vocabularies:
                vars(part)[name] = TOKENS - vocabularies.index(value)
            elif isinstance(value, int) and EXPERTS.fullmatch(name):
                vars(part)[name] = min(value, _experts(part))
            elif isinstance(value, int):
                bound = next((most for pattern, most in LIMITS.items() if pattern.fullmatch(name)), value)
                vars(part)[name] = min(value, bound)
            elif isinstance(value, dict):
                vars(part)[name] = _rope(value, by)
    return small


def _vocabularies(config: Any) -> list[int]:
    """The different sizes of vocabularies that are too large, the largest first."""
    sizes = {value for name, value in vars(config).items() if VOCABULARY.fullmatch(name) and type(value) is int}
    return sorted((size for size in sizes if size > TOKENS), reverse=True)


def _experts(config: Any) -> int:
    """Few experts, of which as many can be chosen as the config says, and in as many groups."""
    chosen = [n for name in CHOSEN for n in _numbers(getattr(config, name, None))]
    return max(4, *chosen, 2 * (getattr(config, "n_group", None) or 1))


def _divided(value: Any, by: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_divided(entry, by) for entry in value)
    return max(2, value // by) if type(value) is int and value >= 16 else value


def _rope(value: dict[str, Any], by: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: _rope(entry, by) if isinstance(entry, dict) else entry for name, entry in value.items()
    }
    if "mrope_section" in found:
        found["mrope_section"] = [n // by for n in found["mrope_section"]]
    return found | {
        name: found[name][: len(found[name]) // by] for name in FACTORS if isinstance(found.get(name), list)
    }


class Unfilled(TorchFunctionMode):
    """Parameters are not filled with random numbers while they are built, as others will be put there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in FILLED and isinstance(args[0] if args else None, nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def plain_torch() -> Iterator[None]:
    """Build on the CPU in 32 bit, whatever the process has chosen; random numbers go on as if nothing was drawn."""
    dtype = torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"  # the context costs something for every function of torch
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), ExitStack() as stack:
        if elsewhere:
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            torch.manual_seed(0)
            yield
        finally:
            torch.set_default_dtype(dtype)


def divisors(model: nn.Module) -> Iterator[int]:
    """By what the widths of a twin can be divided, the most first: what does not fit together so may with less."""
    by = divisor(model.config) if size(model) > SMALL else 1
    yield by
    while by > 1:
        by //= 2
        with torch.device("meta"):
            fits = size(plain_class(model)(shrunken(model.config, by))) <= LARGEST
        if not fits:
            return
        yield by


def twin(model: nn.Module, by: int | None = None) -> nn.Module:
    """A small model like `model`, with weights that are not 0 or 1 anywhere. Raises whatever its class raises.

    Args:
        model: It.
        by: By what its widths are divided.
    """
    config: Any = copy.deepcopy(model.config)
    if size(model) > SMALL:
        config = shrunken(config, divisor(config) if by is None else by)
    for name in ("adapters", "quantization_config"):
        if hasattr(config, name):
            delattr(config, name)
    if getattr(config, "_attn_implementation", None) not in ("eager", "sdpa", None):
        config._attn_implementation = "eager"
    with plain_torch():
        with Unfilled():
            built: nn.Module = plain_class(model)(config)
        _tie(built)
        return randomised(built.float()).eval()


def _tie(model: nn.Module) -> None:
    """Let parameters be one that are one in models that are ready: inside of `from_pretrained` none are tied."""
    tied = getattr(model, "get_expanded_tied_weights_keys", None)
    for target, source in tied(all_submodels=True).items() if tied is not None else ():
        owner, _, name = target.rpartition(".")
        setattr(model.get_submodule(owner), name, model.get_parameter(source))


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Weights of a size that neither vanishes nor grows through many layers; norms and biases that do something."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() > 1:
            most = (0.75 / max(1, parameter.shape[-1])) ** 0.5
            parameter.uniform_(-most, most)
        else:
            near = 1.0 if name.endswith("weight") else 0.0
            parameter.uniform_(near - 0.2, near + 0.2)
    return model
