"""Adapters at tables of embeddings, and trained tokens: the formulas again in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import adapters
from adapters import Average, BatchSplit, Parallel, Stack, TrainableTokensConfig
from adapters.errors import CompositionError, ConfigError, MergeError, UnsupportedError
from adapters.methods import METHODS
from adapters.methods.base import LinearAdapter
from adapters.sites.site import TableSite
from tests.contract.cases import CONFIGS, methods_of
from tests.tiny import adapter_parameters, build, infer, inputs, output, perturb

TABLES = {
    "bert": ["embeddings.word_embeddings"],
    "gpt2": ["wte"],
    "llama": ["embed_tokens"],
    "t5": ["encoder.embed_tokens", "decoder.embed_tokens"],
    "bart": ["encoder.embed_tokens", "decoder.embed_tokens"],
}
TOKENS = [*range(2, 40)]


def with_weights(name: str, change: Any) -> Any:
    """The plain model with weights change(path, W) of their own in each of its tables of tokens."""
    plain = build(name, "lm", adapted=False)
    for path in TABLES[name]:
        table = plain.base_model.get_submodule(path)
        table.weight = nn.Parameter(change(path, table.weight.detach().clone()))
    return plain


@pytest.mark.parametrize("name", TABLES)
def test_lora_looks_up_what_it_adds(name: str) -> None:
    model, given = build(name, "lm"), inputs(name, "lm")
    model.add_adapter("a", config=adapters.LoRAConfig(r=3, alpha=7, places=["embed"]), set_active=True)
    perturb(model, "a")
    assert [part.module.site.path for part in model._engine.parts["a"]] == TABLES[name]
    own = {part.module.site.path: part.module for part in model._engine.parts["a"]}

    def changed(path: str, weight: torch.Tensor) -> torch.Tensor:
        return weight + 7 / 3 * (own[path].lora_B @ own[path].lora_A).detach().T

    want = infer(with_weights(name, changed), given)
    torch.testing.assert_close(infer(model, given), want, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(want, infer(build(name, "lm"), given), atol=1e-2)


@pytest.mark.parametrize("case", [case for case in CONFIGS if all(m.looks_up for m in methods_of(case))])
def test_every_such_method_is_what_it_is_when_merged(case: str) -> None:
    """The merged weight is computed by other code, for linear maps."""
    model, given = build("llama", "lm"), inputs("llama", "lm")
    config = CONFIGS[case].replace(places=["embed"])
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a")
    base, got = infer(build("llama", "lm"), given), infer(model, given)
    assert not torch.allclose(got, base, atol=1e-3)
    model.train_adapter("a")
    output(model.eval(), given).square().sum().backward()
    trained = [p for p in adapter_parameters(model, "a").values() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    model.merge_adapter("a")
    torch.testing.assert_close(infer(model, given), got, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TABLES)
def test_trained_tokens_have_rows_of_their_own(name: str, tmp_path: Path) -> None:
    model, given = build(name, "lm"), inputs(name, "lm")
    model.add_adapter("a", config=TrainableTokensConfig(token_indices=TOKENS), set_active=True)
    (rows,) = adapter_parameters(model, "a").values()
    assert torch.equal(rows, model.get_input_embeddings().weight[TOKENS])
    torch.testing.assert_close(infer(model, given), infer(build(name, "lm"), given), atol=1e-6, rtol=1e-5)
    perturb(model, "a")
    plain = build(name, "lm", adapted=False)
    with torch.no_grad():
        plain.get_input_embeddings().weight[TOKENS] = rows  # and in all that is tied to it
    want = infer(plain, given)
    torch.testing.assert_close(infer(model, given), want, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(want, infer(build(name, "lm"), given), atol=1e-2)

    before = model.get_input_embeddings().weight.clone()
    model.merge_adapter("a")
    torch.testing.assert_close(infer(model, given), want, atol=2e-5, rtol=1e-4)
    model.reset_adapter()
    assert torch.equal(model.get_input_embeddings().weight, before)

    model.save_adapter(tmp_path, "a")
    again = build(name, "lm")
    again.load_adapter(tmp_path, set_active=True)
    assert torch.equal(infer(again, given), infer(model, given))
    model.train_adapter("a")
    output(model.eval(), given).square().sum().backward()
    assert {key for key, p in model.named_parameters() if p.requires_grad and "base_model" in key} == set()
    assert rows.grad is not None and model.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_blocks(name: str) -> None:
    model, given = build(name, "lm"), inputs(name, "lm")
    model.add_adapter("e", config=adapters.LoRAConfig(r=2, alpha=6, places=["embed"]))
    model.add_adapter("t", config=TrainableTokensConfig(token_indices=TOKENS))
    model.add_adapter("u", config=TrainableTokensConfig(token_indices=[3]))
    alone = {}
    for adapter in "et":
        perturb(model, adapter)
        model.set_active_adapters(adapter)
        alone[adapter] = infer(model, given)
    model.set_active_adapters(Parallel("e", "t"))
    torch.testing.assert_close(infer(model, given), torch.cat([alone["e"], alone["t"]]), atol=1e-5, rtol=1e-4)
    model.set_active_adapters(BatchSplit("e", "t", batch_sizes=[2, 2]))
    split = infer(model, given)
    torch.testing.assert_close(split, torch.cat([alone["e"][:2], alone["t"][2:]]), atol=1e-5, rtol=1e-4)
    model.set_active_adapters(None)
    with torch.no_grad():
        named = output(model, given, adapter_names=["t", "e", "e", "t"])
    rows = [alone[adapter][row] for row, adapter in enumerate("teet")]
    torch.testing.assert_close(named, torch.stack(rows), atol=1e-5, rtol=1e-4)
    model.set_active_adapters(Average("t", "t", weights=[0.5, 0.5]))
    torch.testing.assert_close(infer(model, given), alone["t"], atol=1e-5, rtol=1e-4)
    perturb(model, "u")
    rows = {adapter: next(iter(adapter_parameters(model, adapter).values())) for adapter in "tu"}
    plain = build(name, "lm", adapted=False)
    with torch.no_grad():
        plain.get_input_embeddings().weight[TOKENS] = rows["t"]
        plain.get_input_embeddings().weight[3] = rows["u"][0]
    model.set_active_adapters(Stack("t", "u"))
    torch.testing.assert_close(infer(model, given), infer(plain, given), atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="reads numbers that say nothing"):
        model.add_adapter_fusion(["e", "t"])


def test_positions_are_no_rows() -> None:
    model = build("bert")
    config = adapters.LoRAConfig(r=2, places=["embeddings.position_embeddings"])
    for name in "ab":
        model.add_adapter(name, config=config)
    model.set_active_adapters("a")
    with pytest.raises(CompositionError, match="not those of the rows of a batch"):
        model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[2, 2]))


def test_patterns_mean_the_layers() -> None:
    model = build("llama")
    for places in (["all-linear"], ["*.q*", "*"], ["all"]):
        model.add_adapter("a", config=adapters.LoRAConfig(r=2, places=places), overwrite_ok=True)
        assert not any(isinstance(part.module.site, TableSite) for part in model._engine.parts["a"])
    model.add_adapter("b", config=adapters.LoRAConfig(r=2, places=["attn.q", "embed"]))
    assert any(isinstance(part.module.site, TableSite) for part in model._engine.parts["b"])


def test_what_cannot_act_there_says_so() -> None:
    model = build("bert", "classification")
    able = {method for method in METHODS if method.looks_up}
    assert {m.__name__ for m in METHODS if issubclass(m, LinearAdapter) and m not in able} == {
        *("MTLLoRA", "AdaLoRA", "OFT", "InwardIA3"),
    }
    for config, error, said in (
        (adapters.OFTConfig(places=["embed"]), UnsupportedError, "no linear map there"),
        (adapters.LoRAConfig(use_gating=True, places=["embed"]), ConfigError, "use_gating cannot act at the table"),
        (TrainableTokensConfig(), ConfigError, "names no token"),
        (TrainableTokensConfig(token_indices=[64]), ConfigError, "has 64, but .* has 64 rows.*resize_token_embeddings"),
    ):
        with pytest.raises(error, match=said):
            model.add_adapter("a", config=config)
        assert not model.has_adapters()
    for wrong in ([-1], [1, 1], "3", [1.5]):
        with pytest.raises(ConfigError, match="token_indices"):
            TrainableTokensConfig(token_indices=wrong)  # type: ignore[arg-type]


def test_what_others_read_too_is_not_merged() -> None:
    model = build("gpt2", "lm")
    model.add_adapter("a", config=adapters.LoRAConfig(r=2, places=["embed"]))
    before = model.get_input_embeddings().weight.clone()
    with pytest.raises(MergeError, match="lm_head has the same weights"):
        model.merge_adapter("a")
    assert torch.equal(model.get_input_embeddings().weight, before)
