"""A spec written by the user: `AdapterModelInterface` names the places of a model that has no spec of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adapters.errors import ConfigError
from adapters.sites.roles import ROLES, Kind
from adapters.sites.site import AttentionSite, EmbeddingSite, LayerSite, LinearSite, PromptSite, ResidualSite, Site
from adapters.sites.spec import (
    At,
    Attention,
    Branch,
    Columns,
    LayerList,
    LayerSpec,
    Linear,
    ModelSpec,
    Place,
)

KINDS: dict[str, type[Site]] = {
    "bottleneck": ResidualSite,
    "lora": LinearSite,
    "reft": LayerSite,
    "invertible": EmbeddingSite,
    "prompt_tuning": PromptSite,
    "prefix_tuning": AttentionSite,
}
"""Kinds of methods, by the sites at which they act."""

_ROLES: dict[Kind, str] = {
    "branch": "bottleneck",
    "attention": "prefix_tuning",
    "embedding": "invertible",
    "prompt": "prompt_tuning",
}
"""Kinds of places that only exist if `adapter_methods` names the methods that act there."""


@dataclass
class AdapterModelInterface:
    """Where the sites of a model are, as paths of its modules. `init` takes a copy: later changes have no effect.

    Args:
        adapter_methods: Kinds of methods that may be used: some of bottleneck, lora, reft, invertible, prompt_tuning,
            prefix_tuning.
        model_embeddings, model_layers: The embeddings and the list of layers; paths from the base model.
        layer_self_attn: The self attention; a path from a layer, as are all that begin with `layer_`.
        layer_cross_attn: The cross attention, or None.
        attn_k_proj, attn_q_proj, attn_v_proj: Separate projections, paths from the attention; or
        attn_qkv_proj: one projection with equal blocks for queries, keys and values.
        attn_o_proj: The output projection of the attention.
        layer_intermediate_proj, layer_output_proj: First and last linear map of the feed-forward block.
        layer_pre_self_attn, layer_pre_cross_attn, layer_pre_ffn: Modules whose input is the residual input of the
            block, usually the norm in front of it. None where adapters need no residual input.
        layer_ln_1, layer_ln_2: Norms that adapters with `original_ln_before` apply to their input.
        base_model: Path of the base model, if it is not the model's `base_model`.
    Raises:
        ConfigError: neither or both of separate and fused projections are given, or a method is unknown.
    """

    adapter_methods: list[str]
    model_embeddings: str
    model_layers: str
    layer_self_attn: str
    layer_cross_attn: str | None
    attn_o_proj: str | None
    layer_intermediate_proj: str
    layer_output_proj: str
    attn_k_proj: str | None = None
    attn_q_proj: str | None = None
    attn_v_proj: str | None = None
    attn_qkv_proj: str | None = None
    layer_pre_self_attn: str | None = None
    layer_pre_cross_attn: str | None = None
    layer_pre_ffn: str | None = None
    layer_ln_1: str | None = None
    layer_ln_2: str | None = None
    base_model: str | None = field(default=None)

    def __post_init__(self) -> None:
        separate = [self.attn_q_proj, self.attn_k_proj, self.attn_v_proj]
        if bool(self.attn_qkv_proj) == any(separate) or (any(separate) and not all(separate)):
            raise ConfigError(
                "AdapterModelInterface: give either attn_qkv_proj or all of attn_q_proj, attn_k_proj and attn_v_proj, "
                f"got qkv={self.attn_qkv_proj!r}, q={separate[0]!r}, k={separate[1]!r}, v={separate[2]!r}."
            )
        if unknown := sorted(set(self.adapter_methods) - set(KINDS)):
            raise ConfigError(f"AdapterModelInterface: adapter_methods has {unknown}. Allowed: {', '.join(KINDS)}.")

    def to_dict(self) -> dict[str, Any]:
        """All fields, for `adapter_interface.json`."""
        return dataclasses.asdict(self)

    def spec(self, base: nn.Module) -> ModelSpec:
        """The spec of `base` that this interface describes. Raises ConfigError for a path that does not exist."""
        self.__post_init__()  # it may have been changed since it was made
        self._check(base)
        places = {**self._attention("attn", self.layer_self_attn), **self._feed_forward()}
        if self.layer_cross_attn:
            places.update(self._attention("cross", self.layer_cross_attn))
        layer_places, layer_refused = self._allowed(places)
        embeddings = At(self.model_embeddings)
        model_places, model_refused = self._allowed({"embed": embeddings, "embed.prompt": embeddings})
        return ModelSpec(
            (LayerList(self.model_layers, LayerSpec(layer_places, layer_refused)),),
            model_places,
            model_refused,
            causal=True,
            static_inverse=True,
        )

    def _allowed(self, places: dict[str, Place]) -> tuple[dict[str, Place], dict[str, str]]:
        """Those places whose methods may be used, and why the others are refused."""
        lacking = {role: _ROLES.get(ROLES[role].kind) for role in places}
        refused = {
            role: f"adapter_methods of its interface does not have {method!r}"
            for role, method in lacking.items()
            if method is not None and method not in self.adapter_methods
        }
        return {role: place for role, place in places.items() if role not in refused}, refused

    def _attention(self, role: str, module: str) -> dict[str, Place]:
        self_attention = role == "attn"
        output = f"{module}.{self.attn_o_proj}" if self.attn_o_proj else module
        x = self.layer_pre_self_attn if self_attention else self.layer_pre_cross_attn
        norm = self.layer_ln_1 if self_attention else None
        places: dict[str, Place] = {
            f"{role}.core": Attention(module),
            role: self._branch(output, x, norm, "attention_adapters" if self_attention else "cross_attention_adapters"),
        }
        for i, part in enumerate("qkv"):
            if self.attn_qkv_proj:
                places[f"{role}.{part}"] = Linear(f"{module}.{self.attn_qkv_proj}", Columns(i, i + 1, of=3))
            else:
                places[f"{role}.{part}"] = Linear(f"{module}.{getattr(self, f'attn_{part}_proj')}")
        if self.attn_o_proj:
            places[f"{role}.o"] = Linear(output)
        return places

    def _feed_forward(self) -> dict[str, Place]:
        down = self.layer_output_proj
        return {
            "ffn.up": Linear(self.layer_intermediate_proj),
            "ffn.down": Linear(down),
            "ffn": self._branch(down, self.layer_pre_ffn, self.layer_ln_2, "output_adapters"),
        }

    @staticmethod
    def _branch(h: str, x: str | None, norm: str | None, holder: str) -> Branch:
        return Branch(At(h), At(x, "in") if x else None, norm or "", norm_after=False, holder=holder)

    def _check(self, base: nn.Module) -> None:
        """Every path must lead to a module, checked on layer 0."""
        self._find(base, "model_embeddings", self.model_embeddings)
        layer = self._find(base, "model_layers", self.model_layers)[0]  # type: ignore[index]
        for entry in dataclasses.fields(self):
            path = getattr(self, entry.name)
            if path and entry.name.startswith("layer_"):
                self._find(layer, entry.name, path)
            elif path and entry.name.startswith("attn_"):
                self._find(layer, entry.name, f"{self.layer_self_attn}.{path}")

    @staticmethod
    def _find(owner: nn.Module, name: str, path: str) -> nn.Module:
        try:
            return owner.get_submodule(path)
        except AttributeError:
            children = ", ".join(child for child, _ in owner.named_children())
            raise ConfigError(
                f"AdapterModelInterface: {name}={path!r} is no module of {type(owner).__name__}. "
                f"Its children: {children}."
            ) from None
