"""Every spec against its tiny model: paths exist, and the tensors found there are what the spec says they are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.errors import UnsupportedError
from adapters.sites.linear import features, weight_of
from adapters.sites.resolve import (
    AttentionSite,
    EmbeddingSite,
    LayerSite,
    LinearSite,
    PromptSite,
    ResidualSite,
    Site,
    resolve,
    spec_for,
)
from adapters.sites.specs import SPECS
from tests.tiny import TINY_MODELS, WIDTH, build, infer, inputs


def sites_of(name: str) -> tuple[Any, list[Site]]:
    model = build(name, adapted=False)
    return model, resolve(model, spec_for(model))


def of(kind: type[Any], sites: list[Site]) -> list[Any]:
    return [site for site in sites if isinstance(site, kind)]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_layer_has_every_place(name: str) -> None:
    """Two layers per stack, encoder first; only cross attention is the decoder's own."""
    _, sites = sites_of(name)
    both = TINY_MODELS[name].kind == "encoder-decoder"
    layers = range(4 if both else 2)
    assert [site.layer for site in of(LayerSite, sites)] == list(layers)
    for layer in layers:
        here = [site for site in sites if site.layer == layer]
        crossed = both and layer >= 2
        places = [site.location for site in of(ResidualSite, here)]
        assert places == ["mh_adapter", *(["cross_adapter"] if crossed else []), "output_adapter"]
        assert len(of(AttentionSite, here)) == (2 if crossed else 1)
        roles = defaultdict(list)
        for site in of(LinearSite, here):
            roles[site.location].append(site.role)
        assert len(roles["intermediate_lora"]) == len(roles["output_lora"]) == 1
        assert roles["selfattn_lora"] == (["qkv"] if name == "gpt2" else ["q", "k", "v"] * (2 if crossed else 1))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_no_two_places_share_a_name(name: str) -> None:
    model, sites = sites_of(name)
    keys = [(type(site).__name__, site.path, getattr(site, "location", "")) for site in sites]
    assert len(set(keys)) == len(keys)
    spec = spec_for(model)
    disk = {(type(site).__name__, spec.disk_name(site.path), site.location) for site in sites}
    assert len(disk) == len(keys)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_linear_maps_are_linear_maps(name: str) -> None:
    _, sites = sites_of(name)
    for site in of(LinearSite, sites):
        assert weight_of(site.module).shape == (site.out_features, site.in_features)
        x = torch.randn(2, 3, site.in_features)
        bias = 0 if site.module.bias is None else site.module.bias
        torch.testing.assert_close(site.module(x), x @ weight_of(site.module).T + bias)
        if site.parts:
            assert site.parts == ("q", "k", "v") and site.out_features == 3 * WIDTH


def watch(model: Any, sites: list[Any], given: Any) -> dict[int, dict[str, Tensor]]:
    """x and h of every residual branch, and the input of the norm that follows, in one call."""
    seen: dict[int, dict[str, Tensor]] = defaultdict(dict)
    handles = []

    def keep(number: int, what: str, value: Any) -> None:
        seen[number][what] = (value[0] if isinstance(value, tuple) else value).clone()

    for i, site in enumerate(sites):

        def x(module: nn.Module, args: Any, i: int = i, index: int = site.x_index) -> None:
            keep(i, "x", args[index])

        def h(module: nn.Module, args: Any, output: Any, i: int = i) -> None:
            keep(i, "h", output)

        def total(module: nn.Module, args: Any, i: int = i) -> None:
            keep(i, "sum", args[0])

        handles.append(site.x_module.register_forward_pre_hook(x))
        handles.append(site.module.register_forward_hook(h))
        if site.norm is not None:
            handles.append(site.norm.register_forward_pre_hook(total))
    infer(model, given)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_branch_gives_the_sum_of_x_and_h(name: str) -> None:
    """Where a norm follows the sum, it is the norm's input; else the next branch starts with it, or the layer ends."""
    model, sites = sites_of(name)
    branches, given = of(ResidualSite, sites), inputs(name)
    outputs: dict[int, Tensor] = {}
    handles = []
    for site in of(LayerSite, sites):

        def note(module: nn.Module, args: Any, output: Any, layer: int = site.layer) -> None:
            outputs[layer] = (output[0] if isinstance(output, tuple) else output).clone()

        handles.append(site.module.register_forward_hook(note))
    seen = watch(model, branches, given)
    for handle in handles:
        handle.remove()
    for i, site in enumerate(branches):
        total = seen[i]["x"] + seen[i]["h"]
        if site.norm is not None:
            found = seen[i]["sum"]
        elif i + 1 < len(branches) and branches[i + 1].layer == site.layer:
            found = seen[i + 1]["x"]
        else:
            found = outputs[site.layer]
        torch.testing.assert_close(found, total, atol=1e-6, rtol=1e-5, msg=lambda m, s=site: f"{s.path}: {m}")
        assert site.width == total.shape[-1] == WIDTH


@pytest.mark.parametrize("name", TINY_MODELS)
def test_attentions_tell_their_key_heads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Number and width of key heads, and the module that is handed to the attention function."""
    from transformers.modeling_utils import AttentionInterface

    model, sites = sites_of(name)
    seen: dict[int, torch.Size] = {}
    get = AttentionInterface.get_interface

    def spied(self: Any, implementation: str, default: Any) -> Any:
        function = get(self, implementation, default)

        def call(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen[id(module)] = key.shape
            return function(module, query, key, *args, **kwargs)

        return call

    monkeypatch.setattr(AttentionInterface, "get_interface", spied)
    infer(model, inputs(name))
    attentions = of(AttentionSite, sites)
    assert set(seen) == {id(site.module) for site in attentions}
    for site in attentions:
        assert (seen[id(site.module)][1], seen[id(site.module)][3]) == (site.num_heads, site.head_dim)
        assert site.hidden_size == WIDTH
    counts: dict[str, int] = defaultdict(int)
    for site in attentions:
        assert site.index == counts[site.location]
        counts[site.location] += 1


@pytest.mark.parametrize("name", TINY_MODELS)
def test_places_of_the_whole_model(name: str) -> None:
    model, sites = sites_of(name)
    embeddings, prompts = of(EmbeddingSite, sites), of(PromptSite, sites)
    kind = TINY_MODELS[name].kind
    assert len(embeddings) == (0 if kind == "image" else 1)
    assert len(prompts) == (1 if kind in ("encoder", "image") else 0)
    for site in (*embeddings, *prompts):
        assert site.layer == -1
        assert site.width == (16 if name == "electra" else WIDTH)
    for site in of(LayerSite, sites):
        assert site.width == WIDTH and site.stack in set(model.modules())


def test_specs_are_data_that_name_no_method() -> None:
    for spec in SPECS:
        assert spec.model_types and isinstance(spec.model_types, tuple)
        for layers in spec.layers:
            for entry in (*layers.attentions, *layers.residuals):
                assert all(isinstance(getattr(entry, f.name), (str, bool, int)) or f.name == "x" for f in fields(entry))
    types = [kind for spec in SPECS for kind in spec.model_types]
    assert len(set(types)) == len(types)


@pytest.mark.parametrize("task", ["classification", "lm"])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_model_with_a_head_has_the_places_of_its_base_model(name: str, task: str) -> None:
    if task == "lm" and TINY_MODELS[name].lm_options is None:
        pytest.skip("no language model")
    model = build(name, task, adapted=False)
    _, plain = sites_of(name)
    found = resolve(model.base_model, spec_for(model.base_model))
    assert [(type(s), s.location, s.layer, s.path) for s in found] == [
        (type(s), s.location, s.layer, s.path) for s in plain
    ]


def test_an_unknown_type_lists_the_known_ones() -> None:
    model = nn.Linear(1, 1)
    model.config = type("Config", (), {"model_type": "brt"})()  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match="'brt'") as caught:
        spec_for(model)
    assert all(kind in str(caught.value) for spec in SPECS for kind in spec.model_types)


def test_widths_come_from_the_modules() -> None:
    """Qwen3 has heads that are wider than hidden size / heads, and fewer of them for keys."""
    _, sites = sites_of("qwen3")
    widths = {site.role: features(site.module) for site in of(LinearSite, sites) if site.layer == 0}
    assert widths["q"] == (WIDTH, 2 * WIDTH) and widths["k"] == widths["v"] == (WIDTH, WIDTH)
    attention = of(AttentionSite, sites)[0]
    assert (attention.num_heads, attention.head_dim) == (2, 16)
