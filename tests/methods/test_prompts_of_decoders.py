"""Prompts that enter decoders and encoder-decoders: what a call computes, its masks and positions, and generation.

The reference is the plain model, which is given the embeddings with the prompt in front.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, EncoderDecoderConfig, EncoderDecoderModel, StaticCache

import adapters
from adapters import AutoAdapterModel, BatchSplit, Parallel, PromptTuningConfig, Stack
from adapters.errors import SizeError, UnsupportedError
from tests.methods.reference import close
from tests.tiny import (
    LENGTH,
    ROWS,
    TINY_MODELS,
    VOCAB,
    build,
    checkpoint,
    config,
    infer,
    inputs,
    labels,
    perturb,
    randomised,
)

P = 3
DECODERS = [name for name, tiny in TINY_MODELS.items() if tiny.kind == "decoder"]
READ = [name for name, tiny in TINY_MODELS.items() if tiny.kind == "encoder-decoder"]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": VOCAB,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
WRITTEN: dict[str, dict[str, Any]] = {
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 48, "vocab_size": VOCAB},
    "phi": SIZES,
    "gemma2": {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 32},
    "gemma3_text": {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 32},
}
"""Further decoders that are described by hand."""
FOUND: dict[str, dict[str, Any]] = {
    "opt": {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 32, "max_position_embeddings": 48},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB, "pad_token_id": 1},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 48, "vocab_size": VOCAB},
    "falcon": {**SIZES, "alibi": True, "new_decoder_architecture": False, "multi_query": False},
    "gpt_neox": {**SIZES, "max_position_embeddings": 48},
    "mixtral": {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4},
    "gemma": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "olmo2": {**SIZES, "num_key_value_heads": 2},
}
"""Decoders that nobody described, with every kind of position: tables, rotations and biases by distance."""
NO_STATIC_CACHE = ("falcon",)
"""Decoders that refuse one themselves: biases by distance are made of masks [B, S] there."""
BY_INDEX = ("mpt",)
"""Decoders that count the padding between a prompt and its sequence as distance."""


def language_model(name: str, **changes: Any) -> Any:
    if name in TINY_MODELS:
        return build(name, "lm", **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {**WRITTEN, **FOUND}[name]
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes, **changes))
        return adapters.init(randomised(model))


def prompted(name: str, *names: str, **changes: Any) -> Any:
    """A language model with prompts of these names, the first of which is active."""
    model = language_model(name, **changes)
    for number, adapter in enumerate(names or ("a",)):
        model.add_adapter(adapter, config=PromptTuningConfig(prompt_length=P))
        perturb(model, adapter, seed=number)
    model.set_active_adapters((names or ("a",))[0])
    return model


def given_to(name: str, **options: Any) -> Any:
    return inputs(name if name in TINY_MODELS else "llama", "lm", **options)


def weight(model: Any, adapter: str = "a") -> Tensor:
    return next(p for key, p in model.named_parameters() if f"prompt_tunings.{adapter}." in key)


def by_hand(model: Any, given: Any, adapter: str = "a") -> Tensor:
    """The logits of the plain model, with the prompt's rows in front of the embeddings."""
    given = dict(given)
    embedded = model.get_input_embeddings()(given.pop("input_ids"))
    mask = given.pop("attention_mask")
    model.set_active_adapters(None)
    longer = torch.cat([weight(model, adapter).expand(len(embedded), -1, -1), embedded], 1)
    found = infer(
        model, {**given, "inputs_embeds": longer, "attention_mask": torch.nn.functional.pad(mask, (P, 0), value=1)}
    )
    model.set_active_adapters(adapter)
    return found if model.config.is_encoder_decoder else found[:, P:]


@pytest.mark.parametrize("name", [*DECODERS, *READ, *WRITTEN, *FOUND])
def test_it_stands_in_front_of_the_embeddings(name: str) -> None:
    model, given = prompted(name), given_to(name)
    found = infer(model, given)
    assert found.shape[1] == LENGTH - (2 if name in READ else 0)
    close(found, by_hand(model, given))
    if name not in READ:
        embedded = model.get_input_embeddings()(given["input_ids"])
        close(infer(model, {"inputs_embeds": embedded, "attention_mask": given["attention_mask"]}), found)
        alone = {"input_ids": given["input_ids"][:1]}
        close(infer(model, alone), found[:1])
    model.set_active_adapters(None)
    assert not torch.allclose(infer(model, given), found, atol=1e-3)


@pytest.mark.parametrize("name", [*DECODERS, *READ, *WRITTEN, *FOUND])
def test_generation(name: str) -> None:
    """With caches of every kind, without one, and for each row what it is alone."""
    model, given = prompted(name), given_to(name)
    given.pop("decoder_input_ids", None)
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 1}

    def logits(inputs: Any = given, **more: Any) -> Tensor:
        return torch.stack(model.generate(**inputs, **options, **more).logits, 1)

    expected = logits(use_cache=False)
    close(logits(), expected)
    if model._can_compile_fullgraph and name not in NO_STATIC_CACHE:
        close(logits(cache_implementation="static"), expected)
        close(logits(cache_implementation="static"), expected)
    for row in range(ROWS):
        count = LENGTH if name in BY_INDEX else int(given["attention_mask"][row].sum())
        part = slice(0, count) if name in READ else slice(LENGTH - count, LENGTH)
        close(logits({key: value[row : row + 1, part] for key, value in given.items()}), expected[row : row + 1])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("beams", [1, 2])
def test_rows_of_a_batch_have_prompts_of_their_own(name: str, beams: int) -> None:
    model, given = prompted(name, "a", "b"), given_to(name)
    given.pop("decoder_input_ids", None)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": beams, "do_sample": False}
    alone = {}
    for adapter in "ab":
        model.set_active_adapters(adapter)
        alone[adapter] = model.generate(**given, **options)
    model.set_active_adapters(Parallel("a", "b"))
    assert torch.equal(model.generate(**given, **options), torch.cat([alone["a"], alone["b"]]))
    model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[1, ROWS - 1]))
    assert torch.equal(model.generate(**given, **options), torch.cat([alone["a"][:1], alone["b"][1:]]))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_a_stack_has_the_prompts_of_all(name: str) -> None:
    model, given = prompted(name, "a", "b"), given_to(name)
    model.add_adapter("both", config=PromptTuningConfig(prompt_length=2 * P))
    with torch.no_grad():
        weight(model, "both").copy_(torch.cat([weight(model, "b"), weight(model, "a")]))
    model.set_active_adapters("both")
    expected = infer(model, given)
    model.set_active_adapters(Stack("a", "b"))
    close(infer(model, given), expected)


@pytest.mark.parametrize("name", [*DECODERS, *READ])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_it_trains(name: str, checkpointed: bool) -> None:
    """The loss is that of the sequence alone, and gradients reach the prompt and nothing else."""
    model, given = prompted(name), given_to(name, padded=False)
    wanted = labels(name, "lm")
    if checkpointed:
        checkpoint(model)
    model.train_adapter("a")
    model.train()
    loss = model(**given, labels=wanted, use_cache=False).loss
    loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is not None] == [
        key for key, _ in model.named_parameters() if "prompt_tunings.a." in key
    ]
    assert bool((weight(model).grad != 0).all())
    given["labels"] = wanted
    model.eval()
    expected = by_hand(model, {key: value for key, value in given.items() if key != "labels"})
    if name in DECODERS:
        expected, wanted = expected[:, :-1], wanted[:, 1:]
    close(loss, torch.nn.functional.cross_entropy(expected.reshape(-1, VOCAB), wanted.reshape(-1)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "t5"])
def test_flexible_heads_see_the_length_of_the_input(name: str) -> None:
    model, lm = AutoAdapterModel.from_config(config(name)).eval(), TINY_MODELS[name].kind == "decoder"
    model.add_adapter("a", config=PromptTuningConfig(prompt_length=P), set_active=True)
    getattr(model, "add_causal_lm_head" if lm else "add_seq2seq_lm_head")("lm")
    result = model(**given_to(name), labels=labels(name, "lm"))
    assert result.logits.shape[:2] == labels(name, "lm").shape
    logits = result.logits[:, :-1] if lm else result.logits
    wanted = labels(name, "lm")[:, 1:] if lm else labels(name, "lm")
    close(result.loss, torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), wanted.reshape(-1)))
    model.add_classification_head("c", num_labels=3)
    model.active_head = "c"
    assert model(**inputs(name, "classification")).logits.shape == (ROWS, 3)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
class TestMasksAndPositions:
    def test_positions_move(self, name: str) -> None:
        """Of a row that is padded on the left, with its positions, is computed what it is alone."""
        model, given = prompted(name), given_to(name)
        positions = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        together = infer(model, {**given, "position_ids": positions})
        for row in range(ROWS):
            count = int(given["attention_mask"][row].sum())
            alone = infer(model, {"input_ids": given["input_ids"][row : row + 1, LENGTH - count :]})
            close(together[row : row + 1, LENGTH - count :], alone)

    @pytest.mark.parametrize("kind", ["bool", "float"])
    def test_masks_of_pairs(self, name: str, kind: str) -> None:
        model, given = prompted(name), given_to(name)
        real = given["attention_mask"].bool()
        pairs = (torch.ones(LENGTH, LENGTH).tril().bool() & real[:, None, None]) | torch.eye(LENGTH).bool()
        if kind == "float":
            pairs = torch.zeros(pairs.shape).masked_fill(~pairs, torch.finfo(torch.float32).min)
        close(infer(model, {"input_ids": given["input_ids"], "attention_mask": pairs})[real], infer(model, given)[real])

    @pytest.mark.parametrize("static", [False, True])
    def test_a_cache_holds_it(self, name: str, static: bool) -> None:
        model, given = prompted(name), given_to(name)
        cache = StaticCache(model.config, max_cache_len=P + LENGTH) if static else None
        first = {key: value[:, :4] for key, value in given.items()}
        cache = model(**first, past_key_values=cache, use_cache=True).past_key_values
        assert int(cache.get_seq_length()) == P + 4
        rest = model(input_ids=given["input_ids"][:, 4:], attention_mask=given["attention_mask"], past_key_values=cache)
        close(rest.logits.detach(), infer(model, given)[:, 4:])

    def test_a_mask_of_pairs_behind_a_cache(self, name: str) -> None:
        model, given = prompted(name), given_to(name, padded=False)
        cache = model(input_ids=given["input_ids"][:, :4], use_cache=True).past_key_values
        pairs = torch.ones(LENGTH, LENGTH).tril().bool()[None, None, 4:].expand(ROWS, -1, -1, -1)
        rest = model(input_ids=given["input_ids"][:, 4:], attention_mask=pairs, past_key_values=cache)
        close(rest.logits.detach(), infer(model, given)[:, 4:])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_it_compiles_to_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model, given = prompted(name, "a", "b"), given_to(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for adapter in "ab":
        model.set_active_adapters(adapter)
        close(compiled(**given).logits.detach(), infer(model, given))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_states_of_the_encoder_may_be_given(name: str) -> None:
    """Those that it made with the prompt, which are longer than the mask of the tokens, and those of a plain call."""
    model, given = prompted(name), given_to(name)
    read = {key: given[key] for key in ("input_ids", "attention_mask")}
    rest = {key: given[key] for key in ("decoder_input_ids", "attention_mask")}
    expected = infer(model, given)
    close(infer(model, {**rest, "encoder_outputs": model.get_encoder()(**read)}), expected)
    model.set_active_adapters(None)
    plain, states = infer(model, given), model.get_encoder()(**read)
    model.set_active_adapters("a")
    close(infer(model, {**rest, "encoder_outputs": states}), plain)


@pytest.mark.parametrize("decoder", ["bert", "gpt2"])
def test_pairs_have_those_of_their_encoder(decoder: str) -> None:
    parts = EncoderDecoderConfig.from_encoder_decoder_configs(config("bert"), config(decoder, add_cross_attention=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = adapters.init(randomised(EncoderDecoderModel(parts)))
    model.add_adapter("a", config=PromptTuningConfig(prompt_length=P), set_active=True)
    given = inputs("bert")
    given["decoder_input_ids"] = given["input_ids"].flip(1)
    together = infer(model, given)
    model.set_active_adapters(None)
    assert not torch.allclose(infer(model, given), together, atol=1e-3)
    model.set_active_adapters("a")
    for row in range(ROWS):
        count = int(given["attention_mask"][row].sum())
        alone = {key: value[row : row + 1, : count if key == "input_ids" else None] for key, value in given.items()}
        alone.pop("attention_mask")
        close(infer(model, alone), together[row : row + 1])


class TestWhatIsRefused:
    def test_a_place_behind_the_first_token_of_a_decoder(self) -> None:
        model = build("llama")
        with pytest.raises(UnsupportedError, match="padded on the left"):
            model.add_adapter("a", config=PromptTuningConfig(combine="prefix_after_bos"))
        assert not model.has_adapters()
        build("t5").add_adapter("a", config=PromptTuningConfig(combine="prefix_after_bos"))

    def test_token_types(self) -> None:
        model, given = prompted("gpt2"), given_to("gpt2")
        with pytest.raises(UnsupportedError, match="token_type_ids"):
            model(**given, token_type_ids=torch.zeros_like(given["input_ids"]))

    def test_ids_of_several_dimensions(self) -> None:
        with pytest.raises(SizeError, match=r"\(2, 3, 4\)"):
            prompted("gpt2")(input_ids=torch.ones(2, 3, 4, dtype=torch.long))

    def test_masks_that_do_not_tell_of_prompts(self) -> None:
        model, given = prompted("t5"), given_to("t5")
        given["attention_mask"] = given["attention_mask"][:, None, None].bool()
        with pytest.raises(UnsupportedError, match=r"\[B, S\]"):
            model(**given)

    @pytest.mark.parametrize("how", ["lookup", "assistant", "cache"])
    def test_generation_that_counts_by_the_cache(self, how: str) -> None:
        model, given = prompted("llama"), {"input_ids": given_to("llama")["input_ids"][:1]}
        options: dict[str, Any] = {
            "lookup": {"prompt_lookup_num_tokens": 2},
            "assistant": {"assistant_model": build("llama", "lm", adapted=False)},
            "cache": {"past_key_values": model(**given, use_cache=True).past_key_values},
        }[how]
        with pytest.raises(UnsupportedError, match="length of the cache"):
            model.generate(**given, **options)
        model.set_active_adapters(None)
        if how == "lookup":
            model.generate(**given, **options, max_new_tokens=2)
