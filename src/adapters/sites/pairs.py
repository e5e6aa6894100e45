"""Models that are made of two others, an encoder and a decoder of any types: the halves, and both as one spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from adapters.sites.spec import At, Attention, LayerList, LayerSpec, ModelSpec, Place

PAIRS = ("encoder-decoder", "vision-encoder-decoder", "speech-encoder-decoder")
"""Types of such models."""


def halves(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> base model of the encoder and of the decoder; empty if a model is not made of two."""
    if getattr(getattr(model, "config", None), "model_type", None) not in PAIRS:
        return {}
    bases: list[Any] = [model.get_submodule(name).base_model for name in ("encoder", "decoder")]
    return {next(path for path, module in model.named_modules() if module is base): base for base in bases}


def joined(parts: Mapping[str, nn.Module], specs: Mapping[str, ModelSpec]) -> ModelSpec | None:
    """The spec of a model of two halves, from theirs. None if nothing tells where the decoder reads the encoder.

    Args:
        parts: As of `halves`.
        specs: The same paths -> the spec of each.
    """
    lists = {path: [_below(path, layers) for layers in _present(parts[path], spec)] for path, spec in specs.items()}
    encoder, decoder = specs
    if not all(_crosses(layers) for layers in lists[decoder]):
        return None
    return ModelSpec(
        (*lists[encoder], *lists[decoder]),
        {role: _at(encoder, place) for role, place in specs[encoder].places.items()},
        specs[encoder].refused,
        copies_inside=False,
    )


def _present(model: nn.Module, spec: ModelSpec) -> list[LayerList]:
    """The lists of a spec that a model has."""
    return [layers for layers in spec.layers if not layers.optional or layers.path.split(".")[0] in model._modules]


def _crosses(layers: LayerList) -> bool:
    specs = (layers.layer,) if isinstance(layers.layer, LayerSpec) else layers.layer
    return all("cross.core" in spec.places for spec in specs)


def _path(half: str, path: str) -> str:
    return f"{half}.{path}" if path else half


def _at(half: str, place: Place) -> At:
    assert isinstance(place, At)
    return replace(place, path=_path(half, place.path))


def _below(half: str, layers: LayerList) -> LayerList:
    """A list of layers of a half, with paths from the whole model."""
    one = isinstance(layers.layer, LayerSpec)
    specs = tuple(
        replace(spec, places={role: _moved(half, place) for role, place in spec.places.items()})
        for spec in ((layers.layer,) if isinstance(layers.layer, LayerSpec) else layers.layer)
    )
    path, stack = _path(half, layers.path), _path(half, layers.stack)
    return LayerList(path, specs[0] if one else specs, stack, apart=layers.apart)


def _moved(half: str, place: Place) -> Place:
    """A place of a layer; only the owner of a position bias is named from the base model."""
    if isinstance(place, Attention) and place.position_bias:
        return replace(place, position_bias=_path(half, place.position_bias))
    return place
