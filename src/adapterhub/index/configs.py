"""Adapter configs: which method they are, which named config they come from, and their id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ..data import load

__all__ = ["METHODS", "aliases", "config_id", "config_name", "members", "method", "named", "peft_method", "trains"]

Config = Mapping[str, Any]

# The field's terms for what `method` returns.
METHODS: Mapping[str, str] = {
    "bottleneck": "Bottleneck adapter",
    "parallel": "Parallel adapter",
    "compacter": "Compacter",
    "lora": "LoRA",
    "dora": "DoRA",
    "ia3": "(IA)³",
    "vera": "VeRA",
    "dvora": "DVoRA",
    "mtl_lora": "MTL-LoRA",
    "adalora": "AdaLoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "randlora": "RandLoRA",
    "vblora": "VB-LoRA",
    "low_rank_bn": "Low-rank bottleneck",
    "prefix_tuning": "Prefix tuning",
    "prompt_tuning": "Prompt tuning",
    "reft": "ReFT",
    "union": "Union",
}

# Numbers that a named config leaves to the task at hand: `seq_bn` with another reduction factor is still `seq_bn`.
_FREE = frozenset(
    ("reduction_factor", "inv_adapter_reduction_factor", "non_linearity", "dropout", "leave_out", "init_weights")
    + ("init_weights_seed", "r", "alpha", "prefix_length", "bottleneck_size", "prompt_length", "dtype")
    + ("layers", "prefix_positions", "suffix_positions")
)
_HASH_DEFAULTS = {
    "phm_layer": True,
    "phm_dim": 4,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "phm_rank": 1,
    "phm_bias": True,
    "init_weights": "bert",
    "scaling": 1.0,
}
_PEFT = {
    "LORA": "lora",
    "IA3": "ia3",
    "PREFIX_TUNING": "prefix_tuning",
    "PROMPT_TUNING": "prompt_tuning",
    "VERA": "vera",
    "LOHA": "loha",
    "LOKR": "lokr",
    "ADALORA": "adalora",
    "OFT": "oft",
    "BOFT": "boft",
    "P_TUNING": "p_tuning",
}


def named() -> Mapping[str, Config]:
    """The library's named configs: name to config."""
    configs: Mapping[str, Config] = load("configs.json")["configs"]
    return configs


def aliases() -> Mapping[str, str]:
    """Names from before 2023, and today's."""
    old: Mapping[str, str] = load("configs.json")["aliases"]
    return old


def members(config: Config) -> list[Config]:
    """The configs a union joins; a config that is none stands alone."""
    if config.get("architecture") == "union" and isinstance(config.get("configs"), list):
        return [member for member in config["configs"] if isinstance(member, dict)]
    return [config]


def method(config: Config) -> str | None:
    """The method of a config of ours; None where it is of none we know."""
    architecture = config.get("architecture")
    if architecture is None:
        if "mh_adapter" not in config and "output_adapter" not in config:
            return None
        if config.get("phm_layer"):
            return "compacter"
        return "parallel" if config.get("is_parallel") else "bottleneck"
    if architecture == "lora":
        if config.get("composition_mode") == "scale":
            return "ia3"
        vera = isinstance(config.get("vera_d"), float) or isinstance(config.get("vera_b"), float)
        dora = bool(config.get("use_dora"))
        return {(False, False): "lora", (False, True): "dora", (True, False): "vera", (True, True): "dvora"}[vera, dora]
    return architecture if architecture in METHODS else None


def peft_method(config: Config) -> str | None:
    """The method of a config of PEFT."""
    kind = str(config.get("peft_type") or "").upper()
    return "dora" if kind == "LORA" and config.get("use_dora") else _PEFT.get(kind, kind.lower() or None)


# Tensors that are stored with an adapter, but never trained, by its method: the square base of an orthogonal
# projection, the random matrices that all sites share; below, the rules of a multiplication that are not learned.
_FIXED = {
    "reft": re.compile(r"\.parametrizations\.\w+\.\d+\.base$"),
    **dict.fromkeys(("vera", "dvora"), re.compile(r"(?:^|\.)shared_parameters\..*\blora_[AB]$")),
    "randlora": re.compile(r"(?:^|\.)shared_parameters\..*\.[AB]$"),
}
_ENDS = (("prefix_positions", re.compile(r"\.units\.0\.")), ("suffix_positions", re.compile(r"\.units\.1\.")))
_FIXED_OF_PEFT = {
    "vera": re.compile(r"\bvera_[AB]$"),
    "randlora": re.compile(r"\brandlora_[AB]$"),
}
_RULES = re.compile(r"phm_rule(?:_left|_right)?$")


def trains(config: Config, tensor: str) -> bool:
    """Whether a tensor of an adapter's file is trained; what is not is no parameter."""
    if config.get("peft_type"):
        fixed = _FIXED_OF_PEFT.get(peft_method(config) or "")
        return not (fixed and fixed.search(tensor))
    for member in members(config):
        fixed = _FIXED.get(method(member) or "")
        idle = any(member.get(end) == 0 and unit.search(tensor) for end, unit in _ENDS)
        if idle and method(member) == "reft" and not member.get("tied_weights"):
            return False  # the edit of an end without positions never acts
        if (fixed and fixed.search(tensor)) or (member.get("learn_phm") is False and _RULES.search(tensor)):
            return False
    return True


def config_name(config: Config) -> str | None:
    """The named config that a config comes from: equal to it but for sizes and the like."""
    shape = _shape(config)
    exact = next((name for name, known in named().items() if _full(known) == _full(config)), None)
    return exact or next((name for name, known in named().items() if _shape(known) == shape), None)


def _full(config: Config) -> Any:
    return json.loads(json.dumps(_with_defaults(config), sort_keys=True))


def _with_defaults(config: Config) -> Config:
    if config.get("architecture") == "union":
        return {"architecture": "union", "configs": [_with_defaults(member) for member in members(config)]}
    family = next((known for known in named().values() if method(known) == method(config)), {})
    absent = {key: value for key, value in family.items() if key not in config}
    return {**absent, **config}


def _shape(config: Config) -> Any:
    full = _full(config)
    if full.get("architecture") == "union":
        return [_shape(member) for member in full["configs"]]
    return {key: value for key, value in full.items() if key not in _FREE}


def config_id(config: Config) -> str:
    """The 16 hexadecimal digits by which the old hub named configs.

    They are not one-to-one: falsy values do not count, so that configs of different methods may share an id. Keep them
    for look-ups by old clients only.
    """
    if config.get("architecture") == "union":
        config = {f"{i}.{key}": value for i, member in enumerate(members(config)) for key, value in member.items()}
    minimal = {
        key: value
        for key, value in _without_falsy(config).items()
        if key not in _HASH_DEFAULTS or value != _HASH_DEFAULTS[key]
    }
    return hashlib.sha1(json.dumps(minimal, sort_keys=True).encode()).hexdigest()[:16]


def _without_falsy(config: Config) -> dict[str, Any]:
    kept = ((key, _without_falsy(value) if isinstance(value, dict) else value) for key, value in config.items())
    return {key: value for key, value in kept if value}
