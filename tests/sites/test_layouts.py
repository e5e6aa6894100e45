"""Models in which some modules have the sequence first, or rows and positions in one dimension: rows are rows there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import adapters
from adapters import BatchSplit, Parallel
from adapters.errors import UnsupportedError
from tests.tiny import adapter_parameters, perturb
from tests.zoo import METHODS as METHODS_OF_ZOO
from tests.zoo import inputs_of, language_model, small_model

pytestmark = pytest.mark.versions

TURNED = {
    "xlnet": ("layer.0", "layer.0.ff.layer_1", "layer.1.rel_attn"),  # everywhere
    "fsmt": ("encoder.layers.0.self_attn.q_proj", "decoder.layers.1.encoder_attn", "decoder.layers.0.fc2"),
    "longformer": ("encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value"),
}
FLAT = {
    "opt": ("decoder.layers.0.fc1", "decoder.layers.2.fc2", "decoder.layers.1.final_layer_norm"),
}
AS_USUAL = {
    "longformer": ("encoder.layer.0", "encoder.layer.0.output.dense"),
    "prophetnet": ("encoder.layers.0.self_attn",),
    "opt": ("decoder.layers.0", "decoder.layers.0.self_attn.q_proj"),
}
METHODS = ["lora[places='all-linear']", "ia3[places='all-linear']", "double_seq_bn", "par_bn", "loreft", "ln_tuning"]


@pytest.fixture(scope="module", params=[*TURNED, *FLAT, "prophetnet"])
def case(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, Any]]:
    model = small_model(request.param).eval()
    inputs = {
        name: value[:2] if isinstance(value, torch.Tensor) and value.dim() else value
        for name, value in inputs_of(model).items()
    }
    return request.param, adapters.init(model), inputs


def test_which_modules_they_are(case: tuple[str, Any, dict[str, Any]]) -> None:
    name, model, _ = case
    found = model._engine.spec.layouts
    for layout, known in (("sequence", TURNED), ("flat", FLAT)):
        assert {path: found.get(path) for path in known.get(name, ())} == dict.fromkeys(known.get(name, ()), layout)
        assert (layout in found.values()) == (name in known)
    assert not set(AS_USUAL.get(name, ())) & set(found)


@pytest.mark.parametrize("method", METHODS)
def test_every_row_is_what_it_is_alone(case: tuple[str, Any, dict[str, Any]], method: str) -> None:
    _, model, inputs = case
    alone = {}
    try:
        for seed, name in enumerate("ab"):
            model.add_adapter(name, config=method)
            perturb(model, name, seed=seed)
        with torch.no_grad():
            plain = model(**inputs).last_hidden_state
            for name in "ab":
                model.set_active_adapters(name)
                alone[name] = model(**inputs).last_hidden_state
                assert (alone[name] - plain).abs().max() > 0.05
            model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[1, 1]))
            rows = model(**inputs).last_hidden_state
            torch.testing.assert_close(rows, torch.cat([alone["a"][:1], alone["b"][1:]]), atol=1e-5, rtol=1e-4)
            model.set_active_adapters(Parallel("a", "b"))
            both = model(**inputs).last_hidden_state
            torch.testing.assert_close(both, torch.cat([alone["a"], alone["b"]]), atol=1e-5, rtol=1e-4)
    finally:
        model.set_active_adapters(None)
        for name in list(model.adapters_config.adapters):
            model.delete_adapter(name)


def test_a_weight_that_is_read_without_a_call_is_refused() -> None:
    model = adapters.init(small_model("mamba"))
    with pytest.raises(UnsupportedError, match="no call of its own"):
        model.add_adapter("a", config="lora[places='layers.0.mixer.dt_proj']")
    model.add_adapter("a", config="lora[places='all-linear']")
    names = {name for name, _ in adapter_parameters(model, "a").items()}
    assert any(".x_proj." in name for name in names) and not any(".dt_proj." in name for name in names)


@pytest.mark.parametrize("model_type", ["mamba", "opt"])
def test_positions_are_counted_where_caches_or_outer_modules_do_not_tell(model_type: str) -> None:
    """Recurrent states tell no positions; the language model of OPT passes its base model over."""
    speaker = language_model(model_type)
    assert speaker is not None
    speaker.check(METHODS_OF_ZOO["loreft"])
