"""Every spec against its tiny model: paths exist, and the tensors found there are what the spec says they are."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.errors import ConfigError, UnsupportedError
from adapters.methods.locations import names_of
from adapters.sites.linear import features, weight_of
from adapters.sites.lookup import spec_for
from adapters.sites.resolve import resolve
from adapters.sites.roles import ROLES
from adapters.sites.site import (
    AttentionSite,
    EmbeddingSite,
    LayerSite,
    LinearSite,
    NormSite,
    PromptSite,
    ResidualSite,
    Site,
    TableSite,
)
from adapters.sites.spec import At, Attention, Branch, Columns, LayerSpec, Linear, ModelSpec, Norm
from tests.tiny import TINY_MODELS, WIDTH, build, infer, inputs

pytestmark = pytest.mark.versions


def sites_of(name: str) -> tuple[Any, list[Site]]:
    model = build(name, adapted=False)
    return model, resolve(model, spec_for(model), names_of(model.config.model_type))


def of(kind: type[Any], sites: list[Site], role: bool = True) -> list[Any]:
    return [site for site in sites if isinstance(site, kind) and bool(site.role) == role]


CROSSED = {"is_decoder": True, "add_cross_attention": True}
GATED = ("llama", "mistral", "qwen2", "qwen3", "t5-gated", "mt5")


def expected_roles(name: str, crossed: bool) -> set[str]:
    """What a layer has, from what its architecture is."""
    attentions = ("attn", "cross") if crossed else ("attn",)
    of_attentions = {f"{a}{part}" for a in attentions for part in ("", ".q", ".k", ".v", ".core", ".o", ".norm")}
    feed_forward = {"ffn", "ffn.up", "ffn.down", "ffn.norm", *({"ffn.gate"} if name in GATED else ())}
    return of_attentions | feed_forward | {"layer"}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_layer_has_every_role(name: str) -> None:
    """Two layers per stack, encoder first; only cross attention is the decoder's own."""
    _, sites = sites_of(name)
    both = TINY_MODELS[name].kind == "encoder-decoder"
    layers = range(4 if both else 2)
    assert sorted({site.layer for site in sites if site.role} - {-1}) == list(layers)
    for layer in layers:
        roles = [role for site in sites if site.layer == layer and site.role for role in site.role.split("+")]
        assert set(roles) == expected_roles(name, both and layer >= 2)
        branches = {role for role in roles if ROLES[role].kind == "branch"}
        assert {role: roles.count(role) for role in set(roles)} == {role: 1 + (role in branches) for role in set(roles)}


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "electra"])
def test_an_encoder_that_is_made_a_decoder_has_cross_attention(name: str) -> None:
    model = build(name, adapted=False, **CROSSED)
    sites = resolve(model, spec_for(model))
    for layer in range(2):
        assert {r for s in sites if s.layer == layer for r in s.role.split("+")} == expected_roles(name, True)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_linear_map_and_norm_is_a_site_once(name: str) -> None:
    """Those without a role too, under their path."""
    model, sites = sites_of(name)
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    norms = {path for path, module in model.named_modules() if type(module).__name__.endswith("Norm")}
    for kind, paths in ((LinearSite, linears), (NormSite, norms)):
        found = [site for site in sites if type(site) is kind]
        assert sorted(site.path for site in found) == sorted(paths)
        assert all(model.get_submodule(site.path) is site.module for site in found)
    roles = {site.path: site.layer for site in sites if isinstance(site, LinearSite) and site.layer >= 0}
    assert set(roles) == {path for path in linears if re.search(r"\.\d+\.", path)}


@pytest.mark.parametrize("name", [name for name, tiny in TINY_MODELS.items() if tiny.kind != "image"])
def test_tables_of_tokens_are_sites(name: str) -> None:
    model, sites = sites_of(name)
    tables = {path for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    found = {site.path: site.module for site in sites if isinstance(site, TableSite)}
    assert set(found) <= tables
    assert any(module is model.get_input_embeddings() for module in found.values())


@pytest.mark.parametrize("name", TINY_MODELS)
def test_no_two_places_share_a_name(name: str) -> None:
    model, sites = sites_of(name)
    keys = [(type(site).__name__, site.path, site.location) for site in sites]
    assert len(set(keys)) == len(keys)
    names = names_of(model.config.model_type)
    disk = {(type(site).__name__, names.on_disk(site.path), site.location) for site in sites}
    assert len(disk) == len(keys)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_linear_maps_are_linear_maps(name: str) -> None:
    _, sites = sites_of(name)
    for site in of(LinearSite, sites):
        assert weight_of(site.module).shape == (site.out_features, site.in_features)
        if isinstance(site, TableSite):
            ids = torch.tensor([[0, 1, 0], [1, 1, 0]])
            torch.testing.assert_close(site.module(ids), site.factor * weight_of(site.module).T[ids])
            continue
        x = torch.randn(2, 3, site.in_features)
        bias = 0 if site.module.bias is None else site.module.bias
        torch.testing.assert_close(site.module(x), x @ weight_of(site.module).T + bias)
        if site.parts:
            assert site.parts == ("attn.q", "attn.k", "attn.v") and site.out_features == 3 * WIDTH
            columns = [site.columns[part].of_width(site.out_features) for part in site.parts]
            assert columns == [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3)]


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


def layers_of(sites: list[Site]) -> list[Any]:
    return [site for site in sites if isinstance(site, LayerSite) and site.role == "layer"]


def here(sites: list[Site], role: str) -> bool:
    return any(site.role == role for site in sites)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_branch_gives_the_sum_of_x_and_h(name: str) -> None:
    """Where a norm follows the sum, it is the norm's input; else the next branch starts with it, or the layer ends."""
    model, sites = sites_of(name)
    branches, given = of(ResidualSite, sites), inputs(name)
    outputs: dict[int, Tensor] = {}
    handles = []
    for site in layers_of(sites):

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


@pytest.mark.parametrize("name", TINY_MODELS)
def test_places_of_the_whole_model(name: str) -> None:
    model, sites = sites_of(name)
    embeddings, prompts = of(EmbeddingSite, sites), of(PromptSite, sites)
    kind = TINY_MODELS[name].kind
    assert len(embeddings) == (0 if kind == "image" else 1)
    assert len(prompts) == 1
    assert bool(prompts[0].argument) == (kind in ("decoder", "encoder-decoder"))
    assert prompts[0].causal == (kind == "decoder") and len(prompts[0].readers) == (kind == "encoder-decoder")
    assert all(spec_for(model).refusals()[role] for role in ("embed", "embed.prompt") if not here(sites, role))
    for site in (*embeddings, *prompts):
        assert site.layer == -1
        assert site.width == (16 if name == "electra" else WIDTH)
    for site in of(LayerSite, sites):
        assert site.width == WIDTH and site.stack in set(model.modules())


@pytest.mark.parametrize("task", ["classification", "lm"])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_model_with_a_head_has_the_places_of_its_base_model(name: str, task: str) -> None:
    if task == "lm" and TINY_MODELS[name].lm_options is None:
        pytest.skip("no language model")
    model = build(name, task, adapted=False)
    _, plain = sites_of(name)
    found = resolve(model.base_model, spec_for(model.base_model))
    of_heads = ("pooler.", "lm_head")  # in some classes part of the base model, in others not

    def keys(sites: list[Site]) -> list[Any]:
        return [(type(s), s.role, s.layer, s.path) for s in sites if s.role or not s.path.startswith(of_heads)]

    assert keys(found) == keys(plain)


def test_widths_come_from_the_modules() -> None:
    """Qwen3 has heads that are wider than hidden size / heads, and fewer of them for keys."""
    _, sites = sites_of("qwen3")
    widths = {site.role: features(site.module) for site in of(LinearSite, sites) if site.layer == 0}
    assert widths["attn.q"] == (WIDTH, 2 * WIDTH) and widths["attn.k"] == widths["attn.v"] == (WIDTH, WIDTH)
    attention = of(AttentionSite, sites)[0]
    assert (attention.num_heads, attention.head_dim) == (2, 16)


def changed(name: str, role: str, place: Any) -> tuple[Any, ModelSpec]:
    """A model, and its spec with another address for a role of every layer."""
    model = build(name, adapted=False)
    spec = spec_for(model)

    def with_place(layers: Any) -> Any:
        return replace(layers, layer=LayerSpec({**layers.layer.places, role: place}))

    return model, replace(spec, layers=tuple(map(with_place, spec.layers)))


WRONG: dict[str, Any] = {
    "linear": Linear("output.densse"),
    "branch": Branch(At("output.dropuot")),
    "attention": Attention("attention.slef"),
    "norm": Norm("output.LayerNrom"),
    "layer": At("output.x"),
}


@pytest.mark.parametrize("role", [role.name for role in ROLES.values() if role.kind in WRONG])
def test_a_path_that_leads_nowhere_is_an_error(role: str) -> None:
    """With the model, the layer, the role, and what is there instead."""
    place = WRONG[ROLES[role].kind]
    model, spec = changed("bert", role, place)
    with pytest.raises(UnsupportedError) as caught:
        resolve(model, spec)
    path = place.h.path if isinstance(place, Branch) else place.path
    for words in ("BertModel", "'bert'", "layer 0 (encoder.layer.0)", repr(path), f" {role}:", "Allowed: "):
        assert words in str(caught.value)


@pytest.mark.parametrize("end", ["x", "norm"])
def test_so_is_any_end_of_a_branch(end: str) -> None:
    wrong = {"x": At("nowhere", "in")} if end == "x" else {"norm": "nowhere"}
    model, spec = changed("bert", "ffn", Branch(At("output.dropout"), **wrong))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="'nowhere' for ffn"):
        resolve(model, spec)


@pytest.mark.parametrize("part", ["path", "stack", "embed"])
def test_so_are_paths_of_the_model(part: str) -> None:
    model = build("bert", adapted=False)
    spec = spec_for(model)
    if part == "embed":
        spec = replace(spec, places={"embed": At("embeddigns")})
    else:
        spec = replace(spec, layers=(replace(spec.layers[0], **{part: "encodr"}),))
    with pytest.raises(UnsupportedError, match=r"BertModel.*the model has no module.*(Did you mean|Allowed)"):
        resolve(model, spec)


def test_what_is_no_linear_map_is_refused_as_one() -> None:
    model, spec = changed("bert", "ffn.up", Linear("output.dropout"))
    with pytest.raises(UnsupportedError, match=r"ffn\.up, is a Dropout and no linear map"):
        resolve(model, spec)


def test_layers_of_one_stack_may_differ() -> None:
    model = build("bert", adapted=False)
    spec = spec_for(model)
    whole = spec.layers[0].layer
    assert isinstance(whole, LayerSpec)
    small = LayerSpec({"ffn.up": whole.places["ffn.up"]}, {"attn": "this layer has none"})
    sites = resolve(model, replace(spec, layers=(replace(spec.layers[0], layer=(small, whole)),)))
    assert {site.role for site in sites if site.layer == 0} == {"ffn.up", "layer", ""}
    assert {role for site in sites if site.layer == 1 for role in site.role.split("+")} == expected_roles("bert", False)
    assert replace(spec, layers=(replace(spec.layers[0], layer=(small, whole)),)).refusals()["attn"]
    with pytest.raises(UnsupportedError, match="has 2 layers, and its spec describes 1"):
        resolve(model, replace(spec, layers=(replace(spec.layers[0], layer=(whole,)),)))


@pytest.mark.parametrize("places", [{"attn.x": Linear("a")}, {"attn.q": Norm("a")}, {"embed.out": At("a")}])
def test_a_spec_holds_roles_with_their_addresses(places: Any) -> None:
    with pytest.raises(ConfigError, match="A spec "):
        LayerSpec(places)


def test_columns_of_fused_projections() -> None:
    """Every layout against the numbers themselves, arranged as the projection arranges them."""
    numbers = torch.arange(24)
    q, k, v = (Columns(i, i + 1, of=3) for i in range(3))
    assert [numbers[c.of_width(24)].tolist() for c in (q, k, v)] == [p.tolist() for p in numbers.chunk(3)]
    grouped = Columns(0, 4, of=6), Columns(4, 5, of=6), Columns(5, 6, of=6)
    assert [numbers[c.of_width(24)].tolist() for c in grouped] == [p.tolist() for p in numbers.split([16, 4, 4])]
    heads = numbers.view(4, 3, 2)
    for i in range(3):
        chosen = Columns(i, i + 1, of=3, repeats=4).of_width(24)
        assert numbers[list(chosen)].tolist() == heads[:, i].flatten().tolist()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="25 columns"):
        q.of_width(25)


def test_the_number_of_stretches_is_read_from_the_model() -> None:
    """Here as if GPT-2 interleaved its heads."""
    model = build("gpt2", adapted=False)
    spec = spec_for(model)
    layer = spec.layers[0].layer
    assert isinstance(layer, LayerSpec)
    places = dict(layer.places)
    for i, part in enumerate("qkv"):
        places[f"attn.{part}"] = Linear("attn.c_attn", Columns(i, i + 1, of=3, repeats="attn.num_heads"))

    def with_layer(places: Any) -> ModelSpec:
        return replace(spec, layers=(replace(spec.layers[0], layer=LayerSpec(places)),))

    fused = next(site for site in resolve(model, with_layer(places)) if site.role == "attn.q+attn.k+attn.v")
    assert fused.columns["attn.k"] == Columns(1, 2, of=3, repeats=4)  # type: ignore[attr-defined]
    places["attn.q"] = Linear("attn.c_attn", Columns(0, 1, of=3, repeats="attn.heads"))
    with pytest.raises(UnsupportedError, match=r"'attn.heads'.*attn.q"):
        resolve(model, with_layer(places))
