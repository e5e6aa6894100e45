"""A spec written by the user: `AdapterModelInterface` names the places of a model that has no spec of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adapters.errors import ConfigError
from adapters.sites.resolve import (
    AttentionSite,
    EmbeddingSite,
    LayerSite,
    LinearSite,
    PromptSite,
    ResidualSite,
    Site,
)
from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec

KINDS: dict[str, type[Site]] = {
    "bottleneck": ResidualSite,
    "lora": LinearSite,
    "reft": LayerSite,
    "invertible": EmbeddingSite,
    "prompt_tuning": PromptSite,
    "prefix_tuning": AttentionSite,
}
"""Kinds of methods, by the sites at which they act."""


@dataclass(frozen=True)
class AdapterModelInterface:
    """Where the sites of a model are, as paths of its modules.

    Args:
        adapter_methods: Kinds of methods that may be used: some of bottleneck, lora, reft, invertible, prompt_tuning,
            prefix_tuning. The last needs attention modules that use transformers' attention interface.
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
        self._check(base)
        allowed = set(self.adapter_methods)
        prefix = "self_prefix" if "prefix_tuning" in allowed else ""
        attentions = [self._attention(self.layer_self_attn, prefix)]
        if self.layer_cross_attn:
            attentions.append(self._attention(self.layer_cross_attn, prefix and "cross_prefix"))
        layers = LayerSpec(
            path=self.model_layers,
            attentions=tuple(attentions),
            residuals=tuple(self._residuals()) if "bottleneck" in allowed else (),
            intermediate=self.layer_intermediate_proj,
            output=self.layer_output_proj,
        )
        return ModelSpec(
            model_types=(base.config.model_type,),  # type: ignore[union-attr, arg-type]
            layers=(layers,),
            invertible=self.model_embeddings if "invertible" in allowed else None,
            prompt=self.model_embeddings if "prompt_tuning" in allowed else None,
            causal=True,
            static_inverse=True,
        )

    def _attention(self, module: str, prefix: str) -> AttentionSpec:
        if self.attn_qkv_proj:
            return AttentionSpec(module, prefix, qkv=self.attn_qkv_proj)
        q, k, v = self.attn_q_proj or "", self.attn_k_proj or "", self.attn_v_proj or ""
        return AttentionSpec(module, prefix, q=q, k=k, v=v)

    def _residuals(self) -> list[ResidualSpec]:
        places = [
            (
                "mh_adapter",
                self._output(self.layer_self_attn),
                self.layer_pre_self_attn,
                "attention_adapters",
                self.layer_ln_1,
            ),
            ("output_adapter", self.layer_output_proj, self.layer_pre_ffn, "output_adapters", self.layer_ln_2),
        ]
        if self.layer_cross_attn:
            output = self._output(self.layer_cross_attn)
            places.insert(1, ("cross_adapter", output, self.layer_pre_cross_attn, "cross_attention_adapters", None))
        return [
            ResidualSpec(place, h, Input(x) if x else None, owner, norm or "", norm_after=False)  # type: ignore[arg-type]
            for place, h, x, owner, norm in places
        ]

    def _output(self, attention: str) -> str:
        return f"{attention}.{self.attn_o_proj}" if self.attn_o_proj else attention

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
