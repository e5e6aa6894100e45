"""Small models of any type of transformers, and what adapters must do in them. `scripts/zoo.py` asks all types."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

import adapters
from adapters import LoRAConfig, SeqBnConfig
from adapters.sites.discovery.inputs import candidates
from adapters.sites.discovery.trace import untouched
from adapters.sites.discovery.twin import configs, divisor, plain_torch, randomised, shrunken
from adapters.sites.resolve import LinearSite, ResidualSite
from tests.tiny import adapter_parameters, perturb

DEPTHS = re.compile(r"num_hidden_layers|(.*_)?num_layers|n_layers?|(encoder|decoder)_layers|depth|num_.*coder_layers")
KINDS = re.compile(r"(mlp_)?layer_types|layers_block_type")
LAYERS = 3

OPTIONS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "xmod": {"default_language": "en_XX"},
}
"""Values without which the default config of a type, made small, is no model, or computes nothing."""

DESCRIBED = ("gemma2", "gemma3_text", "gptj", "modernbert", "phi", "xmod")
"""Types described by hand, for their files mean what tracing cannot know: `tests/sites/test_what_files_mean.py`."""


def small_config(model_type: str) -> Any:
    """The default config of a type with narrow and few layers."""
    config = AutoConfig.for_model(model_type)
    config = shrunken(config, divisor(config))
    for part in configs(config):
        for name, value in list(vars(part).items()):
            if DEPTHS.fullmatch(name) and type(value) is int:
                vars(part)[name] = min(value, LAYERS)
            elif KINDS.fullmatch(name) and isinstance(value, list):
                vars(part)[name] = _few(value)
    for name, value in OPTIONS.get(model_type, {}).items():
        setattr(config, name, value)
    return config


def _few(kinds: list[str]) -> list[str]:
    """The first layers, and among them one of each kind."""
    different = list(dict.fromkeys(kinds))
    return (different + kinds[len(different) :])[:LAYERS] if len(kinds) > LAYERS else kinds


def small_model(model_type: str) -> Any:
    """A small model of a type, in evaluation mode; always the same weights, none of them trivial."""
    with plain_torch():
        torch.manual_seed(0)
        model = AutoModel.from_config(small_config(model_type))
        return randomised(model.float()).eval()


def inputs_of(model: Any) -> dict[str, Any]:
    """The first inputs with which a forward pass succeeds."""
    errors = []
    for inputs in candidates(model):
        try:
            with untouched(model), torch.no_grad():
                model(**inputs)
            return dict(inputs)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    raise RuntimeError("; ".join(errors) or "no inputs of a known kind")


def output(model: Any, inputs: Any) -> Tensor:
    """All that a model computes that depends on its weights, in one row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.cat([one.flatten() for one in _floats(model(**inputs))]).nan_to_num()


def _floats(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for entry in value for tensor in _floats(entry)] if isinstance(value, (tuple, list)) else []


@dataclass
class Probed:
    """What was found in one model, and what failed.

    Attributes:
        roles: Role -> at how many layers it is.
        refused: Role -> why it is not, where it is refused.
        unnamed: Linear maps of layers that have no role.
        failures: Check -> what was wrong.
    """

    roles: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    unnamed: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def probe(model: Any, inputs: Any) -> Probed:
    """Put adapters at every linear map with a role and at every branch of a model, and see what they do."""
    found = Probed()
    before, hooks = state(model), hook_names(model)
    plain = _of(model.requires_grad_(False), inputs)  # torch computes otherwise, by a bit, where parameters train
    model.requires_grad_(True)
    adapters.init(model)
    sites = model._engine.sites
    found.refused = model._engine.spec.refusals()
    found.roles = Counter(role for site in sites for role in set(site.role.split("+")) if role and site.layer >= 0)
    found.unnamed = [site.path for site in sites if isinstance(site, LinearSite) and not site.role and site.layer >= 0]
    if not any(isinstance(site, LinearSite) for site in sites):
        found.failures["linear"] = "no linear map"
        return found
    _linear(model, inputs, plain, found)
    if any(isinstance(site, ResidualSite) for site in sites):
        _branches(model, inputs, plain, found)
    if state(model) != before or hook_names(model) != hooks:
        found.failures["deleted"] = "names, weights or hooks are not what they were"
    elif not torch.equal(_of(model, inputs), plain):
        found.failures["deleted"] = "the output is not what it was"
    return found


def _of(model: Any, inputs: Any) -> Tensor:
    with torch.no_grad():
        return output(model, inputs)


def _linear(model: Any, inputs: Any, plain: Tensor, found: Probed) -> None:
    """LoRA at every linear map with a role, or at all where none has one: acts, trains, merges, goes."""
    roles = {role for site in model._engine.sites if isinstance(site, LinearSite) for role in site.role.split("+")}
    places = sorted(roles - {""}) or ["*"]
    model.add_adapter("a", config=LoRAConfig(r=2, alpha=2, places=places), set_active=True)
    perturb(model, "a", scale=0.1)
    acted = _of(model, inputs)
    if torch.equal(acted, plain):
        found.failures["linear"] = "the output does not change"
    _gradients(model, inputs, "a", "linear", found)
    model.merge_adapter("a")
    merged = _of(model, inputs)
    if not torch.allclose(merged, acted, atol=1e-3 * float(acted.abs().max()), rtol=1e-3):
        found.failures["merged"] = f"differs by {float((merged - acted).abs().max()):.2g}"
    model.reset_adapter()
    model.delete_adapter("a")


def _branches(model: Any, inputs: Any, plain: Tensor, found: Probed) -> None:
    """A bottleneck at every branch: acts, trains, goes."""
    roles = {site.role for site in model._engine.sites if isinstance(site, ResidualSite)}
    config = SeqBnConfig(reduction_factor=4, places=sorted(roles))
    model.add_adapter("b", config=config, set_active=True)
    perturb(model, "b", scale=0.1)
    if torch.equal(_of(model, inputs), plain):
        found.failures["branches"] = "the output does not change"
    _gradients(model, inputs, "b", "branches", found)
    model.delete_adapter("b")


def _gradients(model: Any, inputs: Any, name: str, check: str, found: Probed) -> None:
    model.train_adapter(name)
    model.eval()
    result = output(model, inputs)
    (result * torch.linspace(0.5, 1.5, len(result))).sum().backward()
    parameters = adapter_parameters(model, name)
    reached = {key for key, p in model.named_parameters() if p.grad is not None}
    if reached - set(parameters):
        found.failures[check] = f"gradients of the base model: {sorted(reached - set(parameters))[:3]}"
    elif silent := sorted(set(parameters) - reached):
        found.failures[check] = f"no gradient: {silent[:3]} and {len(silent)} in all"
    model.zero_grad()


def state(model: nn.Module) -> dict[str, int]:
    """Names of tensors with a sum over their bits."""
    return {name: hash(tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()}


def hook_names(model: nn.Module) -> list[str]:
    """The hooks of all modules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [f"{path}.{kind}" for path, module in model.named_modules() for kind in kinds if getattr(module, kind)]
