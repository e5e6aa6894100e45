"""From a `ModelSpec` and a model to the list of its sites: real modules, widths, layer numbers, names on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adapters.errors import UnsupportedError
from adapters.sites.linear import features
from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec
from adapters.sites.specs import SPECS


@dataclass(eq=False)
class Site:
    """One place of one model where adapters can act.

    Attributes:
        location: The place's name in configs and listings (`selfattn_lora`, `mh_adapter`, `self_prefix`, ...).
        layer: Number of the layer, encoder first; -1 for places that belong to the whole model.
        path: Module path, relative to the base model, below which this place's adapters are stored.
        module: The module that is hooked.
    """

    location: str
    layer: int
    path: str
    module: nn.Module


@dataclass(eq=False)
class LinearSite(Site):
    """A linear map y = W x + b. `parts` names the column blocks of a fused projection, in order."""

    role: str = ""
    parts: tuple[str, ...] = ()

    @property
    def in_features(self) -> int:
        return features(self.module)[0]

    @property
    def out_features(self) -> int:
        return features(self.module)[1]


@dataclass(eq=False)
class ResidualSite(Site):
    """A residual branch: `module` returns h; x is argument `x_index` of `x_module`; `norm` follows the sum, or is None.

    Where `norm_after` is False, `norm` is only for adapters that normalise their input.
    """

    x_module: nn.Module | None = field(kw_only=True)
    x_index: int = 0
    norm: nn.Module | None = None
    norm_after: bool = True
    width: int = 0


@dataclass(eq=False)
class AttentionSite(Site):
    """An attention module; `index` counts the layers of one location. `hidden_size` is the width of its input."""

    index: int = 0
    hidden_size: int = 0
    num_heads: int = 0
    head_dim: int = 0
    position_bias: nn.Module | None = None


@dataclass(eq=False)
class LayerSite(Site):
    """The output of a whole layer; `stack` is the module whose attention mask describes its positions."""

    stack: nn.Module = field(kw_only=True)
    width: int = 0


@dataclass(eq=False)
class EmbeddingSite(Site):
    """Where token embeddings enter the layers: the output of `module`, or its input `index` if `index` is not None."""

    index: int | None = None
    width: int = 0


@dataclass(eq=False)
class PromptSite(Site):
    """The embedding module that prompts are prepended to; `stack` is the module that receives the attention mask."""

    stack: nn.Module = field(kw_only=True)
    width: int = 0


def spec_for(model: nn.Module) -> ModelSpec:
    """The spec of `model`, found by `config.model_type`. Raises UnsupportedError if the type is not known."""
    model_type = model.config.model_type  # type: ignore[union-attr]
    for spec in SPECS:
        if model_type in spec.model_types:
            return spec
    known = sorted(name for spec in SPECS for name in spec.model_types)
    raise UnsupportedError(
        f"Models of type {model_type!r} have no description of their layers yet. Known types: {', '.join(known)}. "
        "Add a ModelSpec (about 20 lines of data, see CONTRIBUTING.md)."
    )


def resolve(base: nn.Module, spec: ModelSpec) -> list[Site]:
    """All sites of `base`, in the order in which a forward pass reaches them."""
    sites: list[Site] = []
    hidden = _width(base)
    if spec.invertible is not None:
        path = spec.invertible.path if isinstance(spec.invertible, Input) else spec.invertible
        index = spec.invertible.index if isinstance(spec.invertible, Input) else None
        if (module := _submodule(base, path)) is not None:
            owner = path.rpartition(".")[0].split(".")[0] if "." in path else ""
            sites.append(EmbeddingSite("invertible", -1, owner, module, index, _embedding_width(base)))
    if spec.prompt is not None:
        prompt = base.get_submodule(spec.prompt)
        sites.append(PromptSite("prompt", -1, "", prompt, stack=base, width=_embedding_width(base)))
    number, prefixes = 0, dict[str, int]()
    for layers in spec.layers:
        stack = _submodule(base, layers.path)
        for i, layer in enumerate(stack if isinstance(stack, nn.ModuleList) else ()):
            sites += _layer_sites(base, layers, layer, f"{layers.path}.{i}", number, prefixes, hidden)
            number += 1
    return sites


def _layer_sites(
    base: nn.Module,
    spec: LayerSpec,
    layer: nn.Module,
    path: str,
    number: int,
    prefixes: dict[str, int],
    hidden: int,
) -> list[Site]:
    sites: list[Site] = []
    for attention in spec.attentions:
        if (module := _submodule(layer, attention.module)) is not None:
            sites += _attention_sites(base, attention, module, f"{path}.{attention.module}", number, prefixes, hidden)
    for location, candidates in (("intermediate_lora", spec.intermediate), ("output_lora", spec.output)):
        name, linear = _first(layer, candidates)
        sites.append(LinearSite(location, number, f"{path}.{name}", linear, location.removesuffix("_lora")))
    for residual in spec.residuals:
        if (module := _submodule(layer, residual.h)) is not None:
            sites.append(_residual_site(layer, residual, module, path, number, hidden))
    stack = base.get_submodule(spec.stack)
    sites.append(LayerSite("output_reft", number, path, layer, stack=stack, width=hidden))
    return sites


def _attention_sites(
    base: nn.Module,
    spec: AttentionSpec,
    module: nn.Module,
    path: str,
    number: int,
    prefixes: dict[str, int],
    hidden: int,
) -> list[Site]:
    sites: list[Site] = []
    parts = ("q", "k", "v") if spec.qkv else ()
    projections = {"qkv": spec.qkv} if spec.qkv else {"q": spec.q, "k": spec.k, "v": spec.v}
    for role, name in projections.items():
        linear = module.get_submodule(name)
        sites.append(LinearSite("selfattn_lora", number, f"{path}.{name}", linear, role, parts))
    if not spec.prefix:
        return sites
    config = base.config
    index = prefixes.get(spec.prefix, 0)
    prefixes[spec.prefix] = index + 1
    bias = base.get_submodule(spec.position_bias) if spec.position_bias else None
    heads, head_dim = _key_heads(config, module, projections.get("k", spec.qkv), bool(parts))
    sites.append(AttentionSite(spec.prefix, number, path, module, index, hidden, heads, head_dim, bias))
    return sites


def _residual_site(
    layer: nn.Module, spec: ResidualSpec, module: nn.Module, path: str, number: int, hidden: int
) -> ResidualSite:
    norm = layer.get_submodule(spec.norm) if spec.norm else None
    return ResidualSite(
        spec.place,
        number,
        f"{path}.{spec.owner}",
        module,
        x_module=None if spec.x is None else layer.get_submodule(spec.x.path),
        x_index=0 if spec.x is None else spec.x.index,
        norm=norm,
        norm_after=spec.norm_after,
        width=hidden,
    )


def _key_heads(config: object, module: nn.Module, projection: str, fused: bool) -> tuple[int, int]:
    """Number and width of key heads, from the module and the width of its key projection (grouped queries!)."""
    out = features(module.get_submodule(projection))[1] // (3 if fused else 1)
    for name in ("attention_head_size", "head_dim", "key_value_proj_dim"):
        if isinstance(head_dim := getattr(module, name, None), int):
            return out // head_dim, head_dim
    heads: int = config.num_attention_heads  # type: ignore[attr-defined]
    return heads, out // heads


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        found = module.get_submodule(path)
    except AttributeError:
        return None
    return found


def _first(layer: nn.Module, candidates: str) -> tuple[str, nn.Module]:
    for name in candidates.split("|"):
        if (module := _submodule(layer, name)) is not None:
            return name, module
    raise UnsupportedError(f"{type(layer).__name__} has none of the modules {candidates.split('|')} its spec names")


def _width(base: nn.Module) -> int:
    config: Any = base.config
    return int(config.hidden_size)


def _embedding_width(base: nn.Module) -> int:
    config: Any = base.config
    return int(getattr(config, "embedding_size", None) or config.hidden_size)
