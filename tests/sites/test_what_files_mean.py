"""Types that people described beside the tiny models: held against what is found, and tried with every method."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import adapters
from adapters import SeqBnConfig
from adapters.errors import AdapterError, ConfigError
from adapters.sites.discovery import cache, discover
from adapters.sites.lookup import spec_for
from adapters.sites.resolve import resolve
from adapters.sites.site import LayerSite, ResidualSite
from adapters.sites.spec import At, LayerSpec, ModelSpec
from tests.contract.cases import CONFIGS
from tests.tiny import adapter_parameters, perturb
from tests.zoo import DESCRIBED, inputs_of, output, small_config, small_model, state

pytestmark = pytest.mark.versions

DIFFERENT: dict[str, dict[str, str]] = {
    "gemma2": {
        **dict.fromkeys(("attn", "ffn"), "adapters of files stand in front of the second norm, not behind it"),
    },
    "gptj": {"ffn": "adapters of files count what the attention gave as a part of x"},
    "modernbert": {
        **dict.fromkeys(("attn", "ffn"), "adapters of files read x behind the norm"),
        **dict.fromkeys(("ffn.up", "ffn.gate"), "in files the map that makes both is one place"),
    },
    "phi": {
        "ffn": "adapters of files read h without x",
        "embed": "adapters of files stand in front of the dropout",
    },
    "xmod": {
        "attn": "adapters of files do not read what comes behind the norm",
        **dict.fromkeys(("ffn", "ffn.up", "ffn.down"), "ours take the place of the model's own adapters there"),
    },
}
DIFFERENT["gemma3_text"] = DIFFERENT["gemma2"]
"""Type -> role -> why people wrote something else than what is found."""


def places(spec: ModelSpec) -> Iterator[dict[str, Any]]:
    """Role -> address, of the whole model and of each of three layers."""
    yield {role: place for role, place in spec.places.items() if role != "embed.prompt"}
    (layers,) = spec.layers
    each = (layers.layer,) * 3 if isinstance(layers.layer, LayerSpec) else layers.layer
    yield from (dict(layer.places) for layer in each)


@pytest.mark.parametrize("model_type", DESCRIBED)
def test_what_people_wrote_is_found_but_for_what_files_mean(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, "")
    model = small_model(model_type)
    written, found = spec_for(model), discover(model)
    assert [layers.path for layers in found.layers] == [layers.path for layers in written.layers]
    assert [layers.stack for layers in found.layers] == [layers.stack for layers in written.layers]
    assert (found.causal, found.copies_inside) == (written.causal, written.copies_inside)
    other = set()
    for ours, theirs in zip(places(found), places(written), strict=True):
        other |= {role for role in {*ours, *theirs} if ours.get(role) != theirs.get(role)}
    assert other == set(DIFFERENT[model_type])


def base_output(model: Any, given: Any) -> Tensor:
    with torch.no_grad():
        return output(model, given)


EACH_KIND = (
    *("seq_bn_inv", "double_seq_bn", "par_bn", "adapter_plus", "lora_everywhere", "ia3", "dora", "prefix_tuning"),
    *("loreft", "unipelt"),
)
"""Configs that need every kind of place; the small models are too many and too wide for all."""


@pytest.mark.parametrize("name", EACH_KIND)
@pytest.mark.parametrize("model_type", DESCRIBED)
def test_every_method(model_type: str, name: str, tmp_path: Path) -> None:
    """It acts, trains, is saved and loaded, and goes; or is refused with our error, and nothing has changed."""
    model = adapters.init(small_model(model_type))
    given, before = inputs_of(model), state(model)
    plain = base_output(model, given)
    if refused(model_type, name):
        with pytest.raises(AdapterError):
            model.add_adapter("a", config=CONFIGS[name], set_active=True)
        assert state(model) == before and torch.equal(base_output(model, given), plain)
        return
    model.add_adapter("a", config=CONFIGS[name], set_active=True)
    perturb(model, "a")
    acted = base_output(model, given)
    assert not torch.equal(acted, plain)
    model.train_adapter("a")
    output(model.eval(), given).square().sum().backward()
    with_gradients = {key for key, p in model.named_parameters() if p.grad is not None}
    assert with_gradients and with_gradients <= set(adapter_parameters(model, "a"))
    model.save_adapter(tmp_path, "a")
    model.delete_adapter("a")
    assert state(model) == before and torch.equal(base_output(model, given), plain)
    model.load_adapter(tmp_path, load_as="b", set_active=True)
    assert torch.equal(base_output(model, given), acted)


def refused(model_type: str, name: str) -> bool:
    """Whether a config cannot mean anything: what leaves an adapter passes a norm before it is added."""
    return name == "adapter_plus" and model_type in ("gemma2", "gemma3_text", "modernbert")


@contextmanager
def seen(**modules: nn.Module) -> Iterator[dict[str, Any]]:
    """First input and output of modules, by name, in the calls that are made meanwhile."""
    values: dict[str, Any] = {}
    handles = []
    for name, module in modules.items():

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            values[name] = given.clone(), (output[0] if isinstance(output, tuple) else output).clone()

        handles.append(module.register_forward_hook(keep, with_kwargs=True))
    yield values
    for handle in handles:
        handle.remove()


def with_bottlenecks(model_type: str, **fields: Any) -> tuple[Any, Any, Any]:
    """A model with an adapter at both branches, its last layer, and inputs."""
    model = adapters.init(small_model(model_type))
    config = adapters.BnConfig(True, True, 4, "relu", **fields)
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a", scale=0.05)
    layers = model.get_submodule(model._engine.spec.layers[0].path)
    return model, layers[-1], inputs_of(model)


def bottleneck(layer: Any, holder: str) -> Any:
    """u(z) of the adapter at a holder."""
    adapter = layer.get_submodule(holder).adapters.a
    return lambda z: adapter.adapter_up(adapter.adapter_down(z))


@torch.no_grad()
def test_gptj_counts_the_attention_as_a_part_of_x() -> None:
    """x of the feed-forward block is the stream with what the attention's own adapter made of it."""
    for fields in ({"original_ln_before": True}, {"is_parallel": True}, {"original_ln_after": False}):
        model, layer, given = with_bottlenecks("gptj", **fields)
        one, two = bottleneck(layer, "attention_adapters"), bottleneck(layer, "output_adapters")
        with seen(layer=layer, attn=layer.attn.out_proj, mlp=layer.mlp.fc_out) as at:
            model(**given)
        x = at["layer"][0]
        for h, u in ((at["attn"][1], one), (at["mlp"][1], two)):
            if "is_parallel" in fields:
                x = x + h + u(x)
            elif "original_ln_before" in fields:
                x = x + h + u(h + x)
            else:
                x = h + u(h)
        torch.testing.assert_close(at["layer"][1], x, msg=lambda m, f=fields: f"{f}: {m}")


@torch.no_grad()
def test_phi_leaves_x_out_of_the_feed_forward_block() -> None:
    for parallel in (False, True):
        model, layer, given = with_bottlenecks("phi", original_ln_before=True, is_parallel=parallel)
        two = bottleneck(layer, "output_adapters")
        with seen(layer=layer, attn=layer.self_attn.dense, mlp=layer.mlp.fc2) as at:
            model(**given)
        x, attn, mlp = at["layer"][0], at["attn"][1], at["mlp"][1]  # that of the attention has its adapter in it
        expected = x + attn + mlp + (two(x) if parallel else two(mlp))
        torch.testing.assert_close(at["layer"][1], expected)


@torch.no_grad()
def test_gemma_norms_what_adapters_give() -> None:
    """Adapters stand in front of the second norm, and with original_ln_before read what it makes of h + x."""
    model, layer, given = with_bottlenecks("gemma2", original_ln_before=True, residual_before_ln=False)
    u = bottleneck(layer, "output_adapters")
    with seen(layer=layer, before=layer.pre_feedforward_layernorm, down=layer.mlp.down_proj) as at:
        model(**given)
    x, h = at["before"][0], at["down"][1]
    z = layer.post_feedforward_layernorm(h + x)
    torch.testing.assert_close(at["layer"][1], x + layer.post_feedforward_layernorm(z + u(z)))


@torch.no_grad()
def test_modernbert_reads_x_behind_the_norm() -> None:
    model, layer, given = with_bottlenecks("modernbert", original_ln_before=True)
    one, two = bottleneck(layer, "attention_adapters"), bottleneck(layer, "output_adapters")
    with seen(layer=layer, attn=layer.attn.Wo, mlp=layer.mlp.Wo) as at:
        model(**given)
    x, h = at["layer"][0], at["attn"][1]
    x = x + h + one(layer.mlp_norm(h + layer.attn_norm(x)))
    h = at["mlp"][1]
    torch.testing.assert_close(at["layer"][1], x + h + two(h + layer.mlp_norm(x)))


@pytest.mark.parametrize("model_type", ["gemma2", "modernbert"])
def test_what_no_adapter_can_give_is_refused(model_type: str) -> None:
    model = adapters.init(small_model(model_type))
    with pytest.raises(ConfigError, match="original_ln_after=False is not possible at layers"):
        model.add_adapter("a", config=SeqBnConfig(original_ln_after=False))
    assert "a" not in model.adapters_config


@pytest.mark.parametrize("model_type", ["gptj", "phi"])
def test_the_branches_of_a_layer_give_what_leaves_it(model_type: str) -> None:
    """The stream and the h of both branches, side by side, are what the layer gives."""
    model = small_model(model_type)
    sites: list[Any] = resolve(model, spec_for(model))
    branches = {site.role: site for site in sites if isinstance(site, ResidualSite) and site.layer == 1}
    (layer,) = (site.module for site in sites if type(site) is LayerSite and site.role == "layer" and site.layer == 1)
    with seen(layer=layer, **{role: site.module for role, site in branches.items()}) as at, torch.no_grad():
        model(**inputs_of(model))
    torch.testing.assert_close(at["layer"][1], at["layer"][0] + at["attn"][1] + at["ffn"][1])


XMOD_FLAGS = [
    {"pre_norm": pre, "ln_before_adapter": before, "adapter_layer_norm": own}
    for pre in (False, True)
    for before in (False, True)
    for own in (False, True)
]


def xmod(**flags: Any) -> Any:
    config = small_config("xmod")
    for name, value in {"num_hidden_layers": 2, "languages": ["en_XX", "de_DE"], **flags}.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.XmodModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


class TestXmod:
    """The language adapters of the model give way to ours."""

    @pytest.mark.parametrize("flags", XMOD_FLAGS, ids=str)
    @torch.no_grad()
    def test_layers_compute_as_without_language_adapters(self, flags: dict[str, Any]) -> None:
        plain, model = xmod(**flags), adapters.init(xmod(**flags))
        for name, parameter in plain.named_parameters():
            if ".adapter_modules." in name:
                parameter.zero_()
        given = inputs_of(plain)
        torch.testing.assert_close(model(**given).last_hidden_state, plain(**given).last_hidden_state)
        assert not torch.allclose(xmod(**flags)(**given).last_hidden_state, plain(**given).last_hidden_state)

    @pytest.mark.parametrize("flags", XMOD_FLAGS, ids=str)
    @torch.no_grad()
    def test_a_bottleneck_stands_where_they_stood(self, flags: dict[str, Any]) -> None:
        model = adapters.init(xmod(**flags))
        model.add_adapter("a", config=SeqBnConfig(reduction_factor=4), set_active=True)
        perturb(model, "a")
        layer = model.encoder.layer[-1]
        u, own, norm = bottleneck(layer, "output"), layer.output.adapter_layer_norm, layer.output.LayerNorm.forward
        with seen(layer=layer, attn=layer.attention, dense=layer.output.dense) as at:
            model(**inputs_of(model))
        h, x = at["dense"][1], at["attn"][1]
        between = (own.forward if own is not None else norm) if flags["ln_before_adapter"] else nn.Identity()
        total = between(h + x + u(between(h + x)))
        torch.testing.assert_close(at["layer"][1], total if flags["pre_norm"] else norm(total))

    def test_no_language_is_chosen(self) -> None:
        """Neither by the config nor by the call; other models of the type are as they were."""
        plain, model = xmod(default_language=None), adapters.init(xmod(default_language=None))
        given = inputs_of(xmod(default_language="en_XX"))
        before = base_output(model, given)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(base_output(other, given), before)
        languages = torch.zeros(len(given["input_ids"]), dtype=torch.long)
        with pytest.raises(ValueError, match="lang_ids chooses among the adapters that XmodModel has of its own"):
            model(**given, lang_ids=languages)
        assert model.state_dict().keys() == plain.state_dict().keys()
        with pytest.raises(ValueError, match="Input language unknown"):
            plain(**given)
        assert not torch.allclose(base_output(plain, {**given, "lang_ids": languages}), before)

    def test_where_they_read_another_norm_than_ours_can(self) -> None:
        """The address of the norm says which of its calls follows the sum."""
        spec = spec_for(xmod(adapter_layer_norm=False, pre_norm=True))
        layer = spec.layers[0].layer
        assert isinstance(layer, LayerSpec)
        ffn: Any = layer.places["ffn"]
        assert (ffn.h, ffn.norm, ffn.norm_call) == (At("output.dropout", call=(0, 2)), "output.LayerNorm", (1, 2))
