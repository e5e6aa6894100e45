"""Where configs put their adapters: `places` on every architecture, flags that say the same, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import adapters
from adapters import (
    AdapterConfig,
    AdapterSetup,
    BnConfig,
    ConfigUnion,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    PrefixTuningConfig,
    SeqBnConfig,
    Stack,
)
from adapters.errors import ConfigError, UnsupportedError
from adapters.methods import METHODS
from adapters.methods.base import LinearAdapter
from adapters.methods.config import place_patterns
from adapters.methods.places import Pattern, output_columns, pattern
from adapters.sites.roles import ROLES
from adapters.sites.site import LinearSite, Site
from adapters.sites.spec import Columns
from tests.contract.cases import CONFIGS, members, methods_of
from tests.tiny import TINY_MODELS, adapter_parameters, build, hooks, infer, inputs, output, perturb

FFN = dict.fromkeys(TINY_MODELS, ("ffn.up", "ffn.down"))
GATED = ("llama", "mistral", "qwen2", "qwen3", "t5-gated", "mt5")


def roles(name: str, *kinds: str) -> list[str]:
    """The roles of some kinds that an architecture has."""
    both, gated = TINY_MODELS[name].kind == "encoder-decoder", name in GATED
    return [
        role.name
        for role in ROLES.values()
        if role.kind in kinds and (both or not role.name.startswith("cross")) and (gated or role.name != "ffn.gate")
    ]


def sites(model: Any, adapter: str) -> list[Site]:
    """Where an adapter is."""
    return [part.module.site for part in model._engine.parts[adapter] if hasattr(part.module, "site")]


EVERYWHERE = [
    pytest.param(name, kind, role, id=f"{name}-{config}-{role}")
    for name in TINY_MODELS
    for config, kind, kinds in (
        ("lora", LoRAConfig(r=2), ("linear",)),
        ("bottleneck", SeqBnConfig(reduction_factor=8), ("branch",)),
        ("reft", LoReftConfig(dropout=0.0), ("branch", "layer")),
        ("prefix", PrefixTuningConfig(prefix_length=2, bottleneck_size=4), ("attention",)),
    )
    for role in roles(name, *kinds)
]


@pytest.mark.parametrize(("name", "config", "role"), EVERYWHERE)
def test_every_role_carries_adapters(name: str, config: AdapterConfig, role: str) -> None:
    """They are there and nowhere else, change the output, have gradients, and leave nothing behind."""
    model, given = build(name), inputs(name)
    plain = infer(model, given)
    model.add_adapter("a", config=config.replace(places=[role]))
    found = sites(model, "a")
    assert {part for site in found for part in site.role.split("+")} & {role} and len(found) == len(set(found))
    layers = 2 if TINY_MODELS[name].kind != "encoder-decoder" or role.startswith("cross") else 4
    assert len({site.layer for site in found}) == len(found) == layers
    if role not in ("attn.q", "attn.k", "attn.v"):
        assert {site.role for site in found} == {role}
    perturb(model, "a")
    model.train_adapter("a")
    model.eval()
    result = output(model, given)
    assert not torch.allclose(result, plain, atol=1e-4)
    result.pow(2).sum().backward()
    gradients = {key: p.grad for key, p in adapter_parameters(model, "a").items()}
    idle = ".units.1." if isinstance(config, LoReftConfig) else "-"  # the unit of suffix positions, of which are none
    assert all(gradient is not None and gradient.any() for key, gradient in gradients.items() if idle not in key)
    model.delete_adapter("a")
    assert torch.equal(infer(model, given), plain) and hooks(model) == hooks(build(name))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_all_linear_is_every_linear_map_of_the_layers(name: str) -> None:
    model = build(name)
    model.add_adapter("a", config=LoRAConfig(r=2, places=["all-linear"]))
    found = {part for site in sites(model, "a") for part in site.role.split("+")}
    assert found == set(roles(name, "linear"))
    assert all(site.layer >= 0 for site in sites(model, "a"))


@pytest.mark.parametrize("role", ["attn.o", "ffn.up", "ffn.gate", "ffn.down"])
def test_lora_is_the_update_of_the_map_that_its_place_names(role: str) -> None:
    """Llama, where old flags call `up` and `down` by each other's names: against the same update of the weight."""
    model, given = build("llama"), inputs("llama")
    model.add_adapter("a", config=LoRAConfig(r=2, alpha=6, places=[role]), set_active=True)
    perturb(model, "a")
    twin = build("llama", adapted=False)
    paths = {"attn.o": "self_attn.o_proj", **{f"ffn.{part}": f"mlp.{part}_proj" for part in ("up", "gate", "down")}}
    for i in range(2):
        own = model.layers[i].get_submodule(paths[role]).loras["a"]
        with torch.no_grad():
            twin.layers[i].get_submodule(paths[role]).weight += 3 * own.lora_B @ own.lora_A
    torch.testing.assert_close(infer(model, given), infer(twin, given), atol=1e-5, rtol=1e-4)


FLAGS: dict[str, tuple[str, AdapterConfig, list[str]]] = {
    "lora": ("bert", LoRAConfig(), ["attn.q", "attn.v"]),
    "patterns": ("bert", LoRAConfig(attn_matrices=["q", "k", "v"]), ["attn.[qkv]"]),
    "fused": ("gpt2", LoRAConfig(), ["attn.q", "attn.v"]),
    "cross": ("bart", LoRAConfig(), ["*.q", "*.v"]),
    "feed-forward": ("bert", LoRAConfig(selfattn_lora=False, intermediate_lora=True), ["ffn.up"]),
    "swapped": ("llama", LoRAConfig(selfattn_lora=False, intermediate_lora=True), ["ffn.down"]),
    "some layers": ("bert", LoRAConfig(leave_out=[0]), ["1:attn.q", "1:attn.v"]),
    "ia3": ("bert", IA3Config(), ["attn.k", "attn.v", "ffn.up"]),
    "one bottleneck": ("bert", SeqBnConfig(), ["ffn"]),
    "two bottlenecks": ("bert", SeqBnConfig(mh_adapter=True), ["ffn", "attn"]),
    "cross bottleneck": ("t5", SeqBnConfig(cross_adapter=True), ["ffn", "cross"]),
    "prefix": ("bert", PrefixTuningConfig(), ["attn.core"]),
    "prefixes": ("bart", PrefixTuningConfig(), ["*.core"]),
    "reft": ("bert", LoReftConfig(), ["layer"]),
    "reft in one layer": ("bert", LoReftConfig(layers=[1]), ["1:layer"]),
}
"""What -> architecture, a config with flags, and the same in places."""


@pytest.mark.parametrize("what", FLAGS)
def test_flags_and_places_are_two_spellings(what: str) -> None:
    """What flags can say is registered and written with flags: the same dictionary, key for key."""
    name, flags, places = FLAGS[what]
    model = build(name)
    model.add_adapter("flags", config=flags)
    model.add_adapter("places", config=type(flags)(places=places))
    assert sites(model, "places") == sites(model, "flags")
    written = model.adapters_config.get("places").to_dict()
    assert json.dumps(written) == json.dumps(flags.to_dict()) and "places" not in written
    assert all(
        output_columns(flags, site) == output_columns(type(flags)(places=places), site)
        for site in sites(model, "flags")
        if isinstance(site, LinearSite)
    )


WITHOUT_PLACES = [name for name in CONFIGS if all(member.places is None for member in members(CONFIGS[name]))]


@pytest.mark.parametrize("config", WITHOUT_PLACES)
def test_configs_without_places_are_written_as_ever(config: str) -> None:
    for member in members(CONFIGS[config]):
        assert "places" not in member.to_dict() and "places" not in member and member.places is None
        assert len(dict(member)) == len(member)


SAYING_MORE = {
    "lora": LoRAConfig(r=2, places=["attn.o", "0:ffn.down"]),
    "fused": LoRAConfig(r=2, places=["0:attn.q", "1:attn.v"]),
    "bottleneck": SeqBnConfig(reduction_factor=8, places=["0:attn", "1:ffn"]),
    "reft": LoReftConfig(dropout=0.0, places=["0:ffn", "attn"]),
    "prefix": PrefixTuningConfig(prefix_length=2, bottleneck_size=4, places=["1:attn.core"]),
    "union": ConfigUnion(LoRAConfig(r=2, places=["0:attn.q"]), LoRAConfig(r=4, places=["1:attn.q", "ffn.down"])),
}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
@pytest.mark.parametrize("what", SAYING_MORE)
def test_places_survive_files(what: str, name: str, tmp_path: Path) -> None:
    """An adapter, and a whole model: the same places, tensors and output."""
    model, given = build(name), inputs(name)
    model.add_adapter("a", config=SAYING_MORE[what], set_active=True)
    perturb(model, "a")
    expected = infer(model, given)
    model.save_adapter(tmp_path / "adapter", "a")
    other = build(name)
    other.load_adapter(tmp_path / "adapter", load_as="b", set_active=True)
    assert torch.equal(infer(other, given), expected)
    assert other.adapters_config.get("b") == model.adapters_config.get("a")
    assert [site.path for site in sites(other, "b")] == [site.path for site in sites(model, "a")]
    model.save_pretrained(tmp_path / "model")
    whole = adapters.load_model(tmp_path / "model", adapters_class(model))
    whole.set_active_adapters("a")
    torch.testing.assert_close(infer(whole.eval(), given), expected)


def adapters_class(model: Any) -> Any:
    """The class of Transformers that a model had before it was adapted."""
    return type(model)._adapted_class


def test_only_what_flags_cannot_say_is_written_as_places(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config=LoRAConfig(places="attn.q+attn.v"))
    model.add_adapter("b", config=LoRAConfig(places="attn.q+attn.o"))
    for adapter, written in (("a", None), ("b", ["attn.q", "attn.o"])):
        model.save_adapter(tmp_path / adapter, adapter)
        config = json.loads((tmp_path / adapter / "adapter_config.json").read_text())["config"]
        assert config.get("places") == written
        assert list(config) == sorted(LoRAConfig(places=written).to_dict())


def test_layers_left_out_when_loading(tmp_path: Path) -> None:
    """Prefixes of chosen layers are stored in one tensor; states are edited at a branch."""
    for config in (
        PrefixTuningConfig(prefix_length=2, flat=True, places=["attn.core"]),
        LoReftConfig(dropout=0.0, places=["ffn"]),
        LoRAConfig(places=["attn.o"]),
    ):
        model, other, given = build("bert"), build("bert"), inputs("bert")
        model.add_adapter("a", config=config)
        perturb(model, "a")
        model.save_adapter(tmp_path, "a")
        other.load_adapter(tmp_path, leave_out=[0], set_active=True)
        assert {site.layer for site in sites(other, "a")} == {1}
        model.set_active_adapters("a", skip_layers=[0])
        torch.testing.assert_close(infer(other, given), infer(model, given))


def test_strings_and_dicts_say_places() -> None:
    expected = ["attn.q", "attn.o"]
    assert AdapterConfig.load("lora[places='attn.q+attn.o']").places == expected  # type: ignore[union-attr]
    assert AdapterConfig.load("lora[places=['attn.q', 'attn.o'],r=2]").places == expected  # type: ignore[union-attr]
    assert AdapterConfig.load("lora", places=expected).places == expected  # type: ignore[union-attr]
    config = LoRAConfig(places="attn.q+attn.o")
    assert config == LoRAConfig(places=expected) != LoRAConfig()
    assert AdapterConfig.from_dict(config.to_dict()) == config
    assert config.replace(places=None) == LoRAConfig()
    assert copy.deepcopy(config) == config


def test_the_grammar() -> None:
    assert pattern("attn.q") == Pattern("attn.q", None)
    assert pattern("0-2,5:*.o") == Pattern("*.o", frozenset({0, 1, 2, 5}))
    assert pattern("ffn.down.in") == Pattern("ffn.down", None, inward=True)


@pytest.mark.parametrize(
    "places", [[], ["a b"], [""], ["1-:attn"], [":attn"], [3], {"attn": 1}, ["a,b:ffn"], "attn.q++"]
)
def test_other_forms_are_refused(places: Any) -> None:
    with pytest.raises(ConfigError, match=r"places is .*'0-3:ffn' or 'all-linear'"):
        LoRAConfig(places=places)


@pytest.mark.parametrize("config", ["lora", "seq_bn", "loreft", "prefix_tuning"])
@pytest.mark.parametrize("wrong", ["attn.x", "decoder.*", "7:*"])
def test_what_matches_nothing_is_an_error_that_lists_what_there_is(config: str, wrong: str) -> None:
    """The roles of the kind that the method needs, how many places each has, and the path of the first."""
    model = build("bert")
    found = AdapterConfig.load(config)
    assert found is not None
    right = {"lora": "attn.q", "seq_bn": "ffn", "loreft": "layer", "prefix_tuning": "attn.core"}[config]
    with pytest.raises(ConfigError) as caught:
        model.add_adapter("a", config=found.replace(places=[right, wrong]))
    assert not model.has_adapters()
    kind = methods_of(config)[0].site_type
    for site in (hooked.site for hooked in model._engine.hooked if isinstance(hooked.site, kind)):
        assert f"  {site.role}" in str(caught.value)
    assert repr(wrong) in str(caught.value) and " 2 x  encoder.layer.0" in str(caught.value)
    assert ("only in 0-1" in str(caught.value)) == (wrong == "7:*")


def test_a_role_of_another_kind_says_so() -> None:
    with pytest.raises(ConfigError, match=r"has it as linear, where Bottleneck cannot act.*Did you mean 'attn'\?"):
        build("bert").add_adapter("a", config=SeqBnConfig(places=["attn.q"]))


def test_a_refused_role_says_why() -> None:
    model = build("vit")
    with pytest.raises(UnsupportedError, match=model._engine.spec.refusals()["embed"]):
        model.add_adapter("a", config="seq_bn_inv")
    assert not model.has_adapters()


NOT_THERE = {
    "leave_out": (LoRAConfig(leave_out=[99]), r"leave_out has \[99\].* layers of this model are 0-1"),
    "layers": (LoReftConfig(layers=[0, 50]), r"layers has \[50\].* are 0-1"),
    "nothing left": (SeqBnConfig(leave_out=[0, 1]), r"selects no place.*\n  attn .*\n  ffn .*\nin layers 0-1"),
    "no width": (SeqBnConfig(reduction_factor=1000), r"reduction_factor 1000 leaves nothing of the width 32"),
    "no width in a layer": (SeqBnConfig(reduction_factor={"1": 33, "default": 2}), r"33 leaves .* layer 1\."),
    "in a union": (ConfigUnion(LoRAConfig(), PrefixTuningConfig(leave_out=[2])), r"PrefixTuningConfig: leave_out"),
}


@pytest.mark.parametrize("what", NOT_THERE)
def test_layers_and_widths_that_are_not_there(what: str) -> None:
    config, words = NOT_THERE[what]
    model = build("bert")
    with pytest.raises(ConfigError, match=rf"(?s)Adapter 'a': .*{words}"):
        model.add_adapter("a", config=config)
    assert not model.has_adapters()


def test_old_files_may_have_them(tmp_path: Path) -> None:
    """A width of 1, and layers that never were: adapters have been trained like that."""
    model = build("bert")
    model.add_adapter("a", config=SeqBnConfig(reduction_factor=32))
    model.save_adapter(tmp_path, "a")
    file = tmp_path / "adapter_config.json"
    data = json.loads(file.read_text())
    data["config"].update(reduction_factor=96, leave_out=[7])
    file.write_text(json.dumps(data))
    other = build("bert")
    other.load_adapter(tmp_path)
    assert all(torch.equal(p, adapter_parameters(other, "a")[k]) for k, p in adapter_parameters(model, "a").items())


APART = {
    "matrices": (LoRAConfig(attn_matrices=["q"]), LoRAConfig(attn_matrices=["v"], r=2)),
    "maps": (LoRAConfig(), LoRAConfig(selfattn_lora=False, output_lora=True)),
    "branches": (SeqBnConfig(reduction_factor=8), BnConfig(True, False, 8, "relu")),
    "places": (LoRAConfig(places=["attn.q"]), LoRAConfig(places=["attn.k"])),
    "layers": (LoRAConfig(places=["0:attn.q"]), LoRAConfig(places=["1:attn.q"])),
    "places and flags": (LoRAConfig(), LoRAConfig(places=["attn.o"])),
}
TOGETHER = {
    "the same": (LoRAConfig(), LoRAConfig(r=2)),
    "one matrix": (LoRAConfig(), LoRAConfig(attn_matrices=["k", "v"])),
    "one map": (LoRAConfig(output_lora=True), LoRAConfig(selfattn_lora=False, output_lora=True)),
    "one branch": (SeqBnConfig(), BnConfig(True, True, 8, "relu")),
    "prefixes": (PrefixTuningConfig(), PrefixTuningConfig(encoder_prefix=False)),
    "places": (LoRAConfig(places=["attn.q", "attn.k"]), LoRAConfig(places=["*.k"])),
    "places and flags": (LoRAConfig(), LoRAConfig(places=["attn.*"])),
}


@pytest.mark.parametrize("what", APART)
def test_a_union_may_have_one_method_twice_where_its_members_do_not_meet(what: str) -> None:
    model = build("bert")
    model.add_adapter("a", config=ConfigUnion(*APART[what]), set_active=True)
    found = sites(model, "a")
    assert len(found) == len(set(found)) > 0
    infer(model, inputs("bert"))


@pytest.mark.parametrize("what", TOGETHER)
def test_members_that_meet_are_refused(what: str) -> None:
    model = build("bert")
    with pytest.raises(ConfigError, match=r"keep them apart|other places"):
        model.add_adapter("a", config=ConfigUnion(*TOGETHER[what]))
    assert not model.has_adapters()


@pytest.mark.parametrize("name", ["llama", "distilbert", "bart", "vit"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_places_at_one_module_act_in_their_order(name: str, first: int) -> None:
    """The output projection is what the branch returns: whichever was hooked first, its adapter acts first."""
    members = {
        "lora": LoRAConfig(r=2, places=["attn.o"]),
        "reft": LoReftConfig(dropout=0.0, places=["attn"]),
        "bottleneck": BnConfig(True, False, 8, "relu"),
    }
    model, given = build(name), inputs(name)
    for adapter in [*members][first:] + [*members][:first]:
        model.add_adapter(adapter, config=members[adapter])
        perturb(model, adapter)
        with AdapterSetup(adapter):  # hooks it
            infer(model, given)
    site = next(hooked.site for hooked in model._engine.hooked if hooked.site.role == "attn.o")
    x = torch.randn(2, 5, site.in_features)
    model.set_active_adapters(Stack("reft", "bottleneck", "lora"))
    part = {type(p.module).__name__: p.module for ps in model._engine.parts.values() for p in ps if p.layer == 0}
    seen = []
    handle = site.module.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        infer(model, given)
        site.module(x)
        y = site.module.forward(x)
        y = part["LoRA"](x, y)
        y = part["ReFT"](y, None, None, 0, 5)
        y = y + part["Bottleneck"](y)
    handle.remove()
    torch.testing.assert_close(seen[-1], y, atol=1e-5, rtol=1e-4)


@dataclass(eq=False)
class OffsetConfig(AdapterConfig):
    """A config that has never had flags."""

    architecture: str | None = "offset"
    places: list[str] = field(default_factory=lambda: ["*.o", "1:ffn.down"])
    rules: ClassVar[Any] = {"places": place_patterns}


class Offset(LinearAdapter):
    """y = W x + b + v."""

    config_class = OffsetConfig

    def __init__(self, config: OffsetConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name)
        self.v = torch.nn.Parameter(torch.ones(site.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.v


def test_a_method_without_flags_has_its_places_as_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.runtime.building.METHODS", (*METHODS, Offset))
    model = build("bert")
    model.add_adapter("a", config=OffsetConfig())
    assert [(site.role, site.layer) for site in sites(model, "a")] == [("attn.o", 0), ("attn.o", 1), ("ffn.down", 1)]
    assert model.adapters_config.get("a") == OffsetConfig()
    model.add_adapter("b", config=OffsetConfig(places=["attn.q"]))
    assert {site.role for site in sites(model, "b")} == {"attn.q"}


def test_only_what_scales_acts_on_inputs() -> None:
    for config in (LoRAConfig, SeqBnConfig, LoReftConfig, PrefixTuningConfig):
        with pytest.raises(ConfigError, match="the input of a linear map"):
            config(places=["ffn.down.in"])


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "vera", "dvora", "mtl_lora"])
def test_columns_that_are_not_adjacent(method: str) -> None:
    """A fused projection whose heads lie q k v, q k v, ...: as three projections with their rows in that order."""
    model = build("gpt2")
    config = CONFIGS[method].replace(places=["attn.q", "attn.v"])
    by_head = {f"attn.{part}": Columns(i, i + 1, of=3, repeats=4) for i, part in enumerate("qkv")}
    fused = [hooked.site for hooked in model._engine.hooked if "+" in hooked.site.role]
    for site in fused:
        site.columns = by_head
    torch.manual_seed(0)
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a")
    torch.manual_seed(0)
    blocks = build("gpt2")
    blocks.add_adapter("a", config=config, set_active=True)
    perturb(blocks, "a")
    order = torch.arange(96).view(4, 3, 8).transpose(0, 1).flatten()  # column of a block -> column of the heads
    for one, other in zip(model.h, blocks.h):
        with torch.no_grad():
            one.attn.c_attn.weight[:, order] = other.attn.c_attn.weight.clone()
            one.attn.c_attn.bias[order] = other.attn.c_attn.bias.clone()
            if method in ("dora", "dvora"):
                mine, theirs = (layer.attn.c_attn.loras["a"].m.weight for layer in (one, other))
                mine[order] = theirs.clone()
    x = torch.randn(2, 5, 32)
    one, other = model.h[0].attn.c_attn, blocks.h[0].attn.c_attn
    with torch.no_grad():
        torch.testing.assert_close(one(x)[..., order], other(x), atol=1e-5, rtol=1e-4)
        model.merge_adapter("a")
        torch.testing.assert_close(one(x)[..., order], other(x), atol=1e-5, rtol=1e-4)
