"""`adapter_names=[...]`: each row of one batch gets what it would get alone, whatever else is in the batch."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedTokenizerFast, pipeline

from adapters import AdapterSetup, Average, BatchSplit, Fuse, MultiTask, Parallel, Split, Stack
from adapters.call import CALL
from adapters.errors import AdapterNameError, CompositionError, HeadError, SizeError
from adapters.heads import MultiHeadOutput
from adapters.runtime import mixing
from tests.contract.cases import CONFIGS, ONE_OF_EACH, REPRESENTATIVE, carrying, every_pair
from tests.heads.models import add_head, inputs_for, tiny
from tests.tiny import ROWS, build, checkpoint, hooks, infer, inputs, perturb

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}


def mixed(name: str, *methods: str, task: str = "base", **kw: Any) -> Any:
    """A tiny model with adapters "a", "b" of the methods, and LoRAs "r2" and "r4" of other ranks and scalings."""
    model = carrying(name, *methods, task=task, **kw)
    model.add_adapter("r2", config="lora[r=2,alpha=3]")
    model.add_adapter("r4", config="lora[r=4,alpha=8]")
    for seed, adapter in enumerate(model.adapters_config):
        perturb(model, adapter, seed=seed)
    return model.eval()


def alone(model: Any, given: Any, rows: Sequence[Any], **kwargs: Any) -> Tensor:
    """What every row is in a batch whose rows all have its adapter."""
    found = []
    for row, setup in enumerate(rows):
        with AdapterSetup(setup):
            found.append(infer(model, given, **kwargs)[row])
    return torch.stack(found)


@every_pair(names=REPRESENTATIVE, where=lambda method, name: name == "bert" or method in ONE_OF_EACH)
def test_every_method_mixes_with_others(method: str, name: str) -> None:
    model, given = mixed(name, method, method), inputs(name)
    if method in ("prompt_tuning",):
        orders = [["a", "b", "b", "a"]]
    else:
        orders = [["a", "r4", None, "b"], ["r2", "a", "r4", "r2"], ["b", "a", "b", "a"], [None, "r2", "r4", None]]
    for rows in orders:
        torch.testing.assert_close(infer(model, given, adapter_names=rows), alone(model, given, rows), **CLOSE)
    assert CALL.now.next_mixture is None and CALL.now.assignment is None


def test_rows_may_have_blocks() -> None:
    model, given = mixed("bert", "seq_bn", "seq_bn"), inputs("bert")
    model.add_adapter_fusion(["a", "b"])
    rows = [Stack("a", "r4"), Average("r2", "b", weights=[0.3, 0.7]), Fuse("a", "b"), Split("a", "b", splits=[3, 4])]
    torch.testing.assert_close(infer(model, given, adapter_names=rows), alone(model, given, rows), **CLOSE)
    rows = [Stack("r2"), *rows[:2], None]
    torch.testing.assert_close(infer(model, given, adapter_names=tuple(rows)), alone(model, given, rows), **CLOSE)


def test_one_name_or_block_is_for_all_rows() -> None:
    model, given = mixed("bert", "lora"), inputs("bert")
    for setup in ("a", Stack("a", "r2")):
        expected = alone(model, given, [setup] * ROWS)
        torch.testing.assert_close(infer(model, given, adapter_names=setup), expected, **CLOSE)


def test_what_peft_calls_no_adapter_is_none_unless_there_is_one_of_that_name() -> None:
    model, given = mixed("bert", "lora"), inputs("bert")
    rows = ["__base__", "a", None, "a"]
    expected = alone(model, given, [None, "a", None, "a"])
    torch.testing.assert_close(infer(model, given, adapter_names=rows), expected, **CLOSE)
    model.add_adapter("__base__", config="lora")
    perturb(model, "__base__")
    torch.testing.assert_close(infer(model, given, adapter_names=rows), alone(model, given, rows), **CLOSE)


def test_all_orders_follow_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, generator = mixed("bert", "seq_bn", "dora"), inputs("bert"), random.Random(0)
    names = ["a", "b", "r2", "r4", None]
    for name in names:
        infer(model, given, adapter_names=[name] * ROWS)
    programs = model._engine.programs
    monkeypatch.setattr(programs, "made", None)
    kept = len(programs._kept)
    for _ in range(100):
        rows = [generator.choice(names) for _ in range(ROWS)]
        model(**given, adapter_names=rows)
    assert len(programs._kept) == kept
    (pool,) = programs.pools._pools
    assert set(pool.numbers) == set(pool.recent) == set(names)


def test_a_pool_forgets_what_was_asked_for_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "MOST_CHILDREN", 3)
    model, given = mixed("bert", "lora", "lora"), inputs("bert")
    for rows in (["a", "a", "a", "b"], ["a", "r2", "r2", "a"], ["r4", "r4", "r4", "r4"], ["a", "b", "r2", "r4"]):
        torch.testing.assert_close(infer(model, given, adapter_names=rows), alone(model, given, rows), **CLOSE)
        (pool,) = model._engine.programs.pools._pools
        assert len(pool.numbers) <= max(3, len(set(rows)))
        assert set(rows) <= set(pool.numbers)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (["a"], SizeError, "has 1 entries, but the batch has 4 rows"),
        (["a"] * 5, SizeError, "has 5 entries, but the batch has 4 rows"),
        (["a", "x", "y", "a"], AdapterNameError, r"\['x', 'y'\], which are no adapters.*Allowed: a, r2, r4"),
        (["a", Stack("a", "x"), "a", "a"], AdapterNameError, r"\['x'\]"),
        ("x", AdapterNameError, r"\['x'\]"),
        (["a", 3, "a", "a"], CompositionError, "holds 3.*name, a block"),
        (["a", "", "a", "a"], CompositionError, "holds ''"),
        (["a", ["a", "r2"], "a", "a"], CompositionError, "Stack"),
        (["a", Parallel("a", "r2"), "a", "a"], CompositionError, "Parallel is about several rows"),
        (["a", Stack("a", MultiTask("a", "r2")), "a", "a"], CompositionError, "MultiTask is about several rows"),
        (["a", BatchSplit("a", "r2", batch_sizes=1), "a", "a"], CompositionError, "BatchSplit is about several rows"),
        (["a", Fuse("a", "r2"), "a", "a"], CompositionError, "fusion"),
        ([], CompositionError, "one entry for each row"),
        ({"a": 4}, CompositionError, "one entry for each row"),
        (3, CompositionError, "one entry for each row"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_runs(rows: Any, error: type[Exception], words: str) -> None:
    model, given, ran = mixed("bert", "lora"), inputs("bert"), []
    model.set_active_adapters("a")
    expected, before = infer(model, given), hooks(model)
    handle = model.embeddings.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(error, match=words):
        model(**given, adapter_names=rows)
    handle.remove()
    assert not ran and hooks(model) == before and CALL.now.next_mixture is None
    assert torch.equal(infer(model, given), expected)


def test_prompts_of_one_batch_must_be_equally_long() -> None:
    model, given = build("bert"), inputs("bert")
    for name, length in (("short", 2), ("long", 3)):
        model.add_adapter(name, config=f"prompt_tuning[prompt_length={length}]")
    model.add_adapter("lora", config="lora")
    for rows in (["short"] * 4, ["long"] * 4, ["lora"] * 4):
        torch.testing.assert_close(infer(model, given, adapter_names=rows), alone(model, given, rows), **CLOSE)
    for rows in (["short", "long"] * 2, ["short", "lora"] * 2, ["long", None] * 2):
        with pytest.raises(CompositionError, match="equally long"):
            model(**given, adapter_names=rows)


def test_changed_deleted_and_replaced_adapters() -> None:
    model, given = mixed("bert", "lora", "seq_bn"), inputs("bert")
    rows = ["a", "r2", "b", "r4"]
    before = infer(model, given, adapter_names=rows)
    perturb(model, "r2", seed=9)
    after = infer(model, given, adapter_names=rows)
    assert not torch.allclose(before[1], after[1])
    torch.testing.assert_close(after, alone(model, given, rows), **CLOSE)
    model.add_adapter("b", config="lora[r=3]", overwrite_ok=True)
    perturb(model, "b", seed=3)
    torch.testing.assert_close(infer(model, given, adapter_names=rows), alone(model, given, rows), **CLOSE)
    model.delete_adapter("b")
    with pytest.raises(AdapterNameError, match="'b'"):
        model(**given, adapter_names=rows)
    rows[2] = "a"
    torch.testing.assert_close(infer(model, given, adapter_names=rows), alone(model, given, rows), **CLOSE)


def test_hooks_stay_for_the_next_batch_until_something_else_is_activated() -> None:
    model, given = mixed("bert", "lora"), inputs("bert")
    model.set_active_adapters(None)
    without = hooks(model)
    model(**given, adapter_names=["a", "a", None, "r2"])
    assert len(hooks(model)) > len(without)
    model.set_active_adapters(None)
    assert hooks(model) == without
    rows = ["r2", "a", "a", None]
    torch.testing.assert_close(infer(model, given, adapter_names=rows), alone(model, given, rows), **CLOSE)


def test_the_assignment_belongs_to_the_call() -> None:
    model, given = mixed("bert", "lora", "seq_bn"), inputs("bert")
    model.set_active_adapters("r4")
    active = infer(model, given)
    inner: list[Any] = []

    def nested(*_: Any) -> None:
        if not inner:
            inner.append(None)  # not again for the calls below
            inner[0] = infer(model, given), infer(model, given, adapter_names=["a", None, "b", "a"])

    handle = model.encoder.layer[0].register_forward_hook(nested)
    rows = ["b", "a", "r2", None]
    with AdapterSetup("r2"):
        found = infer(model, given, adapter_names=rows)
        expected = infer(model, given)
    handle.remove()
    torch.testing.assert_close(found, alone(model, given, rows), **CLOSE)
    assert torch.equal(inner[0][0], expected)
    torch.testing.assert_close(inner[0][1], alone(model, given, ["a", None, "b", "a"]), **CLOSE)
    assert torch.equal(infer(model, given), active)
    handle = model.encoder.layer[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**given, adapter_names=rows)
    handle.remove()
    assert torch.equal(infer(model, given), active)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_threads_have_assignments_of_their_own() -> None:
    model, given = mixed("bert", "lora", "seq_bn"), inputs("bert")
    orders = [["a", "b", "r2", None], ["r2", "a", "a", "b"], [None, "r4", "b", "a"]]
    expected = [alone(model, given, rows) for rows in orders]
    wrong: list[float] = []

    def work(number: int) -> None:
        for _ in range(5):
            found = infer(model, given, adapter_names=orders[number])
            wrong.append((found - expected[number]).abs().max().item())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 15 and max(wrong) < 1e-5


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_those_of_the_sorted_batch(checkpointed: bool) -> None:
    model, given = mixed("bert", "lora", "double_seq_bn"), inputs("bert")
    model.train_adapter(Parallel("a", "b", "r2"))
    order = [1, 3, 0, 2]

    def gradients(given: Any, back: list[int], **kwargs: Any) -> dict[str, Tensor]:
        model.zero_grad()
        states = model(**given, **kwargs)[0][back]
        (states * torch.linspace(0, 1, states.numel()).view(states.shape)).sum().backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    model.set_active_adapters(BatchSplit("a", "b", "r2", batch_sizes=[2, 1, 1]))
    expected = gradients({key: value[order] for key, value in given.items()}, [0, 1, 2, 3])
    checkpoint(model.train(), checkpointed)
    found = gradients(given, order, adapter_names=["b", "a", "r2", "a"])
    assert expected.keys() == found.keys() and any(".b." in key for key in found)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_generate(name: str, options: dict[str, Any]) -> None:
    model, given = mixed(name, "loreft", "prefix_tuning", task="lm"), inputs(name, "lm")
    given = {key: value for key, value in given.items() if key in ("input_ids", "attention_mask")}
    rows, count = ["a", "r2", None, "b"], options.get("num_return_sequences", 1)
    options = {**options, "min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}
    found = model.generate(**given, **options, adapter_names=rows)
    for row, setup in enumerate(rows):
        with AdapterSetup(setup):
            expected = model.generate(**given, **options)
        own = slice(row * count, (row + 1) * count)
        assert torch.equal(found[own], expected[own])
    with pytest.raises(SizeError, match="has 3 entries, but the batch has 4 rows"):
        model.generate(**given, **options, adapter_names=rows[:3])
    assert CALL.now.next_mixture is None


def test_a_set_up_that_is_entered_while_generating_counts_more() -> None:
    model, given, seen = mixed("llama", "lora", task="lm"), inputs("llama", "lm"), []
    prompt = {key: given[key] for key in ("input_ids", "attention_mask")}

    def processor(ids: Tensor, scores: Tensor) -> Tensor:
        with AdapterSetup("a"):
            seen.append(infer(model, given))
        return scores

    model.generate(
        **prompt, max_new_tokens=2, min_new_tokens=2, adapter_names=["r2"] * ROWS, logits_processor=[processor]
    )
    with AdapterSetup("a"):
        torch.testing.assert_close(seen[-1], infer(model, given), **CLOSE)


def test_a_pipeline_hands_the_names_to_generate() -> None:
    words = ["<pad>", "<unk>", *(chr(ord("a") + i) for i in range(26))]
    split = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    split.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=split, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    pipe = pipeline("text-generation", model=mixed("llama", "seq_bn", task="lm"), tokenizer=tokenizer)
    texts, rows = ["a b c", "d e", "f g h i"], ["a", None, "r2"]
    options = {"batch_size": 3, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    found = pipe(texts, adapter_names=rows, **options)
    for row, setup in enumerate(rows):
        with AdapterSetup(setup):
            assert found[row] == pipe(texts, **options)[row]


def with_heads() -> Any:
    """A model with classification heads "a" and "b" of three labels, "x" of one kind more, and adapters of these."""
    model = tiny("bert")
    for name, config in (("a", "lora[r=2]"), ("b", "seq_bn"), ("x", "lora[r=4]"), ("c", "lora")):
        model.add_adapter(name, config=CONFIGS.get(config, config))
    for name, kind in (("a", "classification"), ("b", "classification"), ("x", "tagging")):
        add_head(model, kind, name)
    for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(index))
    return model.eval()


def test_every_row_goes_through_its_own_head_and_rows_stay_in_order() -> None:
    model = with_heads()
    given, labels = inputs_for(model, rows=4), torch.tensor([0, 1, 2, 1])
    model.active_head = "a"
    rows = ["b", "a", None, "c"]
    with torch.no_grad():
        found = model(**given, labels=labels, adapter_names=rows)
        losses = {}
        for row, (adapter, head) in enumerate(zip(rows, ["b", "a", "a", "a"])):
            with AdapterSetup(adapter, head_setup=head):
                torch.testing.assert_close(found.logits[row], model(**given).logits[row], **CLOSE)
        for head, own in (("b", [0]), ("a", [1, 2, 3])):
            losses[head] = torch.nn.functional.cross_entropy(found.logits[own], labels[own])
    assert type(found) is type(model(**given)) and next(iter(found)) == "loss"
    torch.testing.assert_close(found.loss, sum(losses.values()), **CLOSE)
    assert model(**given, adapter_names=rows, return_dict=False)[0].shape == found.logits.shape
    assert model(**given, adapter_names=rows, head="x").logits.shape[:2] == (4, given["input_ids"].shape[1])


def test_heads_that_give_unlike_things_give_each_their_own() -> None:
    model = with_heads()
    given = inputs_for(model, rows=4)
    found = model(**given, adapter_names=["x", "a", "x", "b"])
    assert isinstance(found, MultiHeadOutput) and found.rows is not None
    assert [rows.tolist() for rows in found.rows] == [[0, 2], [1], [3]]
    with AdapterSetup("x", head_setup="x"):
        torch.testing.assert_close(found[0].logits, model(**given).logits[[0, 2]], **CLOSE)


def test_rows_without_a_head_need_an_active_one() -> None:
    model = with_heads()
    model.active_head = None
    with pytest.raises(HeadError, match="Row 1 has the adapter 'c', which has no head"):
        model(**inputs_for(model, rows=4), adapter_names=["a", "c", "b", "a"])


@pytest.mark.parametrize("method", ["seq_bn", "dora", "prefix_tuning", "loreft"])
def test_compiled_in_place_all_orders_share_one_graph(method: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    model, given = mixed("bert", method, method), inputs("bert")
    orders = [["a", "r4", None, "b"], ["r2", "a", "r4", "r2"], ["b", "b", "a", "r4"], ["r2", "r4", "r2", None]]
    expected = [alone(model, given, rows) for rows in orders]
    infer(model, given, adapter_names=["a", "b", "r2", "r4"])
    infer(model, given, adapter_names=[None] * ROWS)
    model.compile(fullgraph=True, backend="eager")
    for rows, found in zip(orders, expected):
        torch.testing.assert_close(infer(model, given, adapter_names=rows), found, **CLOSE)
    assert counters["stats"]["unique_graphs"] == 1
