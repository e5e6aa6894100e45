"""`generate` gives the same tokens and scores with and without a cache, alone and in blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import AdapterSetup, Average, BatchSplit, Fuse, Parallel, Route, Stack
from tests.contract.cases import CONFIGS, ONE_OF_EACH, carrying, every_pair, pairs
from tests.tiny import LANGUAGE_MODELS, TINY_MODELS, infer, inputs, perturb

NEW = 6
DECODERS = [name for name in LANGUAGE_MODELS if TINY_MODELS[name].kind != "encoder-decoder"]
FEW = ("bert", "gpt2", "llama", "t5", "bart")


def prompt(name: str, rows: int = 3, length: int = 6) -> Any:
    """Inputs of `generate`: padded left for decoders, right for encoders."""
    given = inputs(name, "lm", rows=rows, length=length)
    given.pop("decoder_input_ids", None)
    return given


def generated(model: Any, given: Any, **kwargs: Any) -> Any:
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    return model.generate(**given, **{**options, **kwargs}, return_dict_in_generate=True, output_logits=True)


def assert_same(one: Any, two: Any) -> None:
    """Same tokens from nearly the same numbers."""
    for a, b in zip(one.logits, two.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert torch.equal(one.sequences, two.sequences)


def language_model(name: str, *methods: str, **kwargs: Any) -> Any:
    model = carrying(name, *methods, task="lm", **kwargs)
    for i, adapter in enumerate(("a", "b", "c")[: len(methods)]):
        perturb(model, adapter, seed=i)
    return model


@pytest.mark.versions
@every_pair(names=LANGUAGE_MODELS)
def test_cache_and_no_cache_agree(method: str, name: str) -> None:
    model, given = language_model(name, method), prompt(name)
    plain = generated(model, given)
    model.set_active_adapters("a")
    cached = generated(model, given, use_cache=True)
    assert_same(cached, generated(model, given, use_cache=False))
    assert not torch.allclose(cached.logits[0], plain.logits[0], atol=1e-3)
    assert not torch.allclose(cached.logits[-1], plain.logits[-1], atol=1e-3)


@pytest.mark.versions
@every_pair(methods=ONE_OF_EACH, names=FEW)
def test_beams(method: str, name: str) -> None:
    model, given = language_model(name, method), prompt(name)
    model.set_active_adapters("a")
    cached = generated(model, given, num_beams=3, output_scores=True)
    repeated = generated(model, given, num_beams=3, output_scores=True, use_cache=False)
    assert torch.equal(cached.sequences, repeated.sequences)
    torch.testing.assert_close(cached.sequences_scores, repeated.sequences_scores, atol=1e-4, rtol=1e-3)


@every_pair(methods=ONE_OF_EACH, names=FEW, where=lambda m, _: m not in ("loreft_ends", "prompt_tuning", "unipelt"))
def test_generation_is_what_repeated_calls_give(method: str, name: str) -> None:
    model, given = language_model(name, method), prompt(name)
    model.set_active_adapters("a")
    result = generated(model, given)
    encoder = TINY_MODELS[name].kind == "encoder-decoder"
    tokens = result.sequences
    count = 1 if encoder else given["input_ids"].shape[1]
    for step in range(NEW):
        ids = tokens[:, : count + step]
        if encoder:
            logits = infer(model, {**given, "decoder_input_ids": ids})[:, -1]
        else:
            mask = torch.cat([given["attention_mask"], torch.ones(ids.shape[0], step, dtype=torch.long)], 1)
            positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1 if name == "gpt2" else 0)
            logits = infer(model, {"input_ids": ids, "attention_mask": mask, "position_ids": positions})[:, -1]
        torch.testing.assert_close(result.logits[step], logits, atol=1e-4, rtol=1e-3)


@pytest.mark.versions
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_pair(methods=("prefix_tuning", "mam"), names=LANGUAGE_MODELS)
def test_prefixes_under_both_attention_functions(method: str, name: str, attention: str) -> None:
    given = prompt(name)
    model = language_model(name, method, attn_implementation=attention)
    other = language_model(name, method, attn_implementation="sdpa" if attention == "eager" else "eager")
    assert model.config._attn_implementation == attention
    model.set_active_adapters("a")
    other.set_active_adapters("a")
    cached = generated(model, given)
    assert_same(cached, generated(model, given, use_cache=False))
    assert_same(cached, generated(other, given))
    unpadded = {"input_ids": given["input_ids"][:1], "attention_mask": torch.ones_like(given["attention_mask"][:1])}
    assert_same(generated(model, unpadded), generated(other, unpadded))


@pytest.mark.versions
@every_pair(methods=ONE_OF_EACH, names=("gpt2", "qwen3", "t5"))
def test_static_cache(method: str, name: str) -> None:
    model, given = language_model(name, method), prompt(name)
    model.set_active_adapters("a")
    dynamic = generated(model, given)
    assert_same(dynamic, generated(model, given, cache_implementation="static", disable_compile=True))


@every_pair(methods=ONE_OF_EACH, names=("mistral",))
def test_sliding_windows(method: str, name: str) -> None:
    model, given = language_model(name, method, sliding_window=4), prompt(name)
    model.set_active_adapters("a")
    assert_same(generated(model, given), generated(model, given, use_cache=False))


@every_pair(methods=ONE_OF_EACH, names=("llama",))
def test_generation_from_embeddings(method: str, name: str) -> None:
    model, given = language_model(name, method), prompt(name)
    model.set_active_adapters("a")
    expected = generated(model, given).sequences[:, -NEW:]
    embeddings = model.get_input_embeddings()(given.pop("input_ids"))
    assert torch.equal(generated(model, {"inputs_embeds": embeddings, **given}).sequences, expected)


@every_pair(methods=ONE_OF_EACH, names=FEW)
def test_parallel_rows_equal_single_runs(method: str, name: str) -> None:
    model, given = language_model(name, method, method), prompt(name)
    singles = []
    for adapter in ("a", "b", None):
        model.set_active_adapters(adapter)
        singles.append(generated(model, given))
    model.set_active_adapters(Parallel("a", "b"))
    together = generated(model, given)
    assert torch.equal(together.sequences, torch.cat([single.sequences for single in singles[:2]]))
    for step, logits in enumerate(together.logits):
        expected = torch.cat([single.logits[step] for single in singles[:2]])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(generated(model, given, use_cache=False).sequences, together.sequences)
    if method != "prompt_tuning":
        model.set_active_adapters(Parallel("b", None))
        expected = torch.cat([singles[1].sequences, singles[2].sequences])
        assert torch.equal(generated(model, given).sequences, expected)


@every_pair(methods=("seq_bn", "lora", "prefix_tuning", "loreft_ends", "unipelt"), names=("gpt2", "t5"))
@pytest.mark.parametrize("block", ["Parallel", "BatchSplit"])
def test_blocks_with_beams(method: str, name: str, block: str) -> None:
    model, given = language_model(name, method, method), prompt(name)
    rows = {"a": slice(0, 1), "b": slice(1, 3)} if block == "BatchSplit" else {"a": slice(None), "b": slice(None)}
    expected = []
    for adapter, part in rows.items():
        model.set_active_adapters(adapter)
        expected.append(model.generate(**{k: v[part] for k, v in given.items()}, num_beams=2, max_new_tokens=4))
    model.set_active_adapters(Parallel("a", "b") if block == "Parallel" else BatchSplit("a", "b", batch_sizes=[1, 2]))
    assert_rows(model.generate(**given, num_beams=2, max_new_tokens=4), expected)
    assert_rows(model.generate(**given, num_beams=2, max_new_tokens=4, use_cache=False), expected)


def assert_rows(found: Tensor, expected: list[Tensor]) -> None:
    """`found` has the rows of `expected`, which may be shorter where all of them ended early."""
    row = 0
    for part in expected:
        assert torch.equal(found[row : row + len(part), : part.shape[1]], part)
        row += len(part)
    assert row == len(found)


@every_pair(methods=("seq_bn", "lora", "prefix_tuning", "loreft_ends"), names=("bert", "llama", "qwen3", "t5", "mbart"))
def test_batch_split(method: str, name: str) -> None:
    model, given = language_model(name, method, method), prompt(name)
    setup = BatchSplit("a", None, "b", batch_sizes=1)
    expected = []
    for i, adapter in enumerate(setup):
        model.set_active_adapters(adapter)
        expected.append(generated(model, {key: value[i : i + 1] for key, value in given.items()}).sequences)
    with AdapterSetup(setup):
        assert torch.equal(generated(model, given).sequences, torch.cat(expected))


@every_pair(methods=("seq_bn", "par_bn", "compacter"), names=("gpt2", "t5"))
def test_fusion(method: str, name: str) -> None:
    model, given = language_model(name, method, method), prompt(name)
    model.add_adapter_fusion(["a", "b"])
    model.set_active_adapters(Fuse("a", "b"))
    assert_same(generated(model, given), generated(model, given, use_cache=False))


@every_pair(methods=("seq_bn", "lora", "prefix_tuning"), names=("gpt2", "t5"))
def test_routing(method: str, name: str) -> None:
    for by in ("token", "sequence"):
        model, given = language_model(name, method, method), prompt(name)
        block = Route("a", "b", by=by)
        model.add_adapter_routing(block)
        perturb(model, "a,b")
        model.set_active_adapters(block)
        assert_same(generated(model, given), generated(model, given, use_cache=False))


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("setup", [Stack("a", "b", "c"), Average("a", "b", "c"), Parallel(Stack("a", "c"), "b", None)])
def test_other_blocks(name: str, setup: Any) -> None:
    model, given = language_model(name, "prefix_tuning", "seq_bn", "loreft_ends"), prompt(name)
    model.set_active_adapters(setup)
    assert_same(generated(model, given), generated(model, given, use_cache=False))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_conversation_continues_a_cache(name: str) -> None:
    """A second call with the cache of the first sees the same prefixes and edits."""
    from transformers import DynamicCache

    for method in ("prefix_tuning", "seq_bn", "lora", "loreft", "seq_bn_inv"):
        model = language_model(name, method)
        model.set_active_adapters("a")
        ids = prompt(name, rows=1)["input_ids"]
        expected = infer(model, {"input_ids": ids})
        cache = DynamicCache(config=model.config)
        first = infer(model, {"input_ids": ids[:, :4], "past_key_values": cache})
        rest = infer(model, {"input_ids": ids[:, 4:], "past_key_values": cache})
        torch.testing.assert_close(torch.cat([first, rest], 1), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["t5", "bart", "mbart"])
@pytest.mark.parametrize("method", ["prefix_tuning", "double_seq_bn_cross", "lora", "seq_bn_inv"])
def test_generation_from_encoder_outputs(name: str, method: str) -> None:
    model, given = language_model(name, method, method), prompt(name)
    model.set_active_adapters("a")
    expected = generated(model, given)
    with torch.no_grad():
        states = model.get_encoder()(**given)
    mask = given["attention_mask"]
    assert_same(generated(model, {"encoder_outputs": states, "attention_mask": mask}), expected)


@pytest.mark.parametrize("name", FEW)
def test_sampling_and_positional_inputs(name: str) -> None:
    model, given = language_model(name, "seq_bn", "lora"), prompt(name)
    model.set_active_adapters(Parallel("a", "b"))
    result = model.generate(
        given["input_ids"], attention_mask=given["attention_mask"], do_sample=True, max_new_tokens=3
    )
    assert len(result) == 2 * len(given["input_ids"])
    result = model.generate(**given, do_sample=True, max_new_tokens=3, num_return_sequences=2)
    assert len(result) == 4 * len(given["input_ids"])


@pytest.mark.parametrize("name", FEW)
def test_the_call_after_generate_is_an_ordinary_one(name: str) -> None:
    model, given = language_model(name, "loreft_ends", "mam"), inputs(name, "lm")
    for setup in ("a", Parallel("a", "b")):
        model.set_active_adapters(setup)
        expected = infer(model, given)
        generated(model, prompt(name))
        assert torch.equal(infer(model, given), expected)


def test_every_method_generates() -> None:
    ids = {param.id for param in pairs(names=LANGUAGE_MODELS)}
    assert all(any(one.startswith(f"{method}-") for one in ids) for method in CONFIGS)
