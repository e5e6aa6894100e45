"""Does each head run on the rows that are its own, and are labels that nobody reads refused?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from adapters.composition.blocks import BatchSplit, MultiTask, Parallel, Stack
from adapters.errors import AdapterNameError, HeadError
from adapters.heads import HEADS, MultiHeadOutput
from adapters.heads.running import LABELS
from adapters.runtime.active import AdapterSetup
from tests.heads.custom import Custom
from tests.heads.models import ADD, OF_TYPE, PAIRS, add_head, inputs_for, labels_for, tiny

TASKS = torch.tensor([1, 0, 0, 1])
MODELS = ("bert", "gpt2", "t5", "vit")


def with_tasks(model_type: str, **kinds: str) -> Any:
    """A model with an adapter and a head for each task."""
    model = tiny(model_type)
    for name, head_type in kinds.items():
        add_head(model, head_type, name)
        model.add_adapter(name, config="lora")
    for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(index))
    return model


def rows(inputs: dict[str, torch.Tensor], chosen: Any) -> dict[str, torch.Tensor]:
    return {name: value[chosen] for name, value in inputs.items()}


@pytest.mark.parametrize("setup", [MultiTask("a", "b"), Stack("c", MultiTask("a", "b"))], ids=str)
@pytest.mark.parametrize("model_type", MODELS)
def test_every_row_goes_through_the_head_of_its_task(model_type: str, setup: Any) -> None:
    kind = "image_classification" if model_type == "vit" else "classification"
    model = with_tasks(model_type, a=kind, b=kind)
    model.add_adapter("c", config="seq_bn")
    inputs, labels = inputs_for(model, rows=4), torch.tensor([2, 1, 0, 1])
    model.set_active_adapters(setup)
    assert model.active_head == MultiTask("a", "b")
    for ids in (TASKS, ["b", "a", "a", "b"]):
        out = model(**inputs, task_ids=ids, labels=labels)
        assert isinstance(out, MultiHeadOutput)
        assert out.rows is not None and [r.tolist() for r in out.rows] == [[1, 2], [0, 3]]
        losses = []
        for index, name in enumerate("ab"):
            own = TASKS == index
            model.set_active_adapters(Stack("c", name) if isinstance(setup, Stack) else name)
            alone = model(**rows(inputs, own), labels=labels[own])
            torch.testing.assert_close(out[index].logits, alone.logits)
            torch.testing.assert_close(out.logits[own], alone.logits)
            torch.testing.assert_close(out[index].loss, alone.loss)
            losses.append(alone.loss)
        torch.testing.assert_close(out.loss, sum(losses))
        model.set_active_adapters(setup)


@pytest.mark.parametrize(("first", "second"), list(pairwise(h for h in HEADS if h in tiny("bert").head_types)))
def test_heads_of_any_kinds_share_a_batch(first: str, second: str) -> None:
    """Their labels differ in shape: each head gets its own, for its rows."""
    if "multiple_choice" in (first, second):
        pytest.skip("its rows are alternatives")
    model = with_tasks("bert", a=first, b=second)
    inputs = {**inputs_for(model, "dependency_parsing", rows=4)}
    model.set_active_adapters(MultiTask("a", "b"))
    kinds, own = {"a": first, "b": second}, {}
    labels: dict[str, dict[str, torch.Tensor]] = {}
    for index, (name, kind) in enumerate(kinds.items()):
        own[name] = rows(labels_for(kind, 4), TASKS == index)
        for key, value in own[name].items():
            labels.setdefault(key, {})[name] = value
    out = model(**inputs, **labels, task_ids=TASKS)
    total = 0.0
    for index, name in enumerate(kinds):
        model.set_active_adapters(name)
        alone = model(**rows(inputs, TASKS == index), **own[name])
        total += alone.loss
        torch.testing.assert_close(out[index].loss, alone.loss)
        for key in alone:
            torch.testing.assert_close(out[index][key], alone[key])
    torch.testing.assert_close(out.loss, total)


def test_tasks_without_rows_and_rows_in_a_context() -> None:
    model = with_tasks("bert", a="classification", b="classification")
    model.active_head = "a"
    inputs, labels = inputs_for(model, rows=4), torch.tensor([0, 1, 2, 0])
    with AdapterSetup(MultiTask("a", "b")):
        out = model(**inputs, task_ids=torch.ones(4, dtype=torch.long), labels=labels)
        want = model(**inputs, task_ids=torch.ones(4, dtype=torch.long), labels=labels, head="b")
    assert out[0].logits.shape == (0, 3)
    torch.testing.assert_close(out.logits, want.logits)
    torch.testing.assert_close(out.loss, want.loss)
    out.loss.backward()
    assert all(p.grad is None for p in model.heads["a"].parameters())
    assert all(p.grad is not None for p in model.heads["b"].parameters())


def test_tasks_of_heads_alone() -> None:
    """A shared encoder without adapters, and heads that are called otherwise than the adapters."""
    model = tiny("bert")
    for name in "xy":
        add_head(model, "classification", name)
    inputs = inputs_for(model, rows=4)
    each = [model(**inputs, head=name).logits for name in "xy"]
    want = torch.where(TASKS[:, None] == 0, *each)
    model.active_head = MultiTask("x", "y")
    torch.testing.assert_close(model(**inputs, task_ids=TASKS).logits, want)
    for name in "ab":
        model.add_adapter(name, config="lora")
    with AdapterSetup(MultiTask("a", "b"), head_setup=MultiTask("x", "y")):
        torch.testing.assert_close(model(**inputs, task_ids=["b", "a", "a", "b"]).logits, want)
    with pytest.raises(ValueError, match="task_ids"):
        model(**inputs)
    with pytest.raises(ValueError, match="task_ids"):
        model(**inputs, task_ids=torch.tensor([0, 1]))


def test_generation_by_task() -> None:
    model = with_tasks("gpt2", a="causal_lm", b="causal_lm")
    model.generation_config.pad_token_id = model.config.pad_token_id
    ids = inputs_for(model, rows=4)["input_ids"][:, :4]
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    each = []
    for name in "ab":
        model.set_active_adapters(name)
        each.append(model.generate(ids, **options))
    assert not torch.equal(*each)
    model.set_active_adapters(MultiTask("a", "b"))
    together = model.generate(ids, task_ids=TASKS, **options)
    assert torch.equal(together, torch.where(TASKS[:, None] == 0, *each))


def test_logits_that_heads_do_not_share() -> None:
    model = with_tasks("bert", a="classification", b="tagging", c="question_answering")
    inputs = inputs_for(model)
    for heads in (["a", "b"], ["a", "c"]):
        model.active_head = heads
        out = model(**inputs)
        assert not hasattr(out, "logits")
        assert getattr(out, "logits", None) is None
        with pytest.raises(HeadError, match=r"out\[i\]"):
            out.logits  # noqa: B018
    model.add_classification_head("d", num_labels=5)
    model.active_head = ["a", "d"]
    assert not hasattr(model(**inputs), "logits")


def test_labels_are_by_head_in_every_block() -> None:
    model = with_tasks("bert", a="classification", b="tagging")
    inputs = inputs_for(model, rows=4)
    own = {"a": torch.tensor([0, 1, 2, 1]), "b": labels_for("tagging", 4)["labels"]}
    each = []
    for name in "ab":
        model.set_active_adapters(name)
        each.append(model(**inputs, labels=own[name]).loss)
    model.set_active_adapters(Parallel("a", "b"))
    out = model(**inputs, labels=own)
    torch.testing.assert_close(out.loss, each[0] + each[1])
    model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[3, 1]))
    out = model(**inputs, labels={"a": own["a"][:3], "b": own["b"][3:]})
    model.set_active_adapters("b")
    torch.testing.assert_close(out[1].loss, model(**rows(inputs, slice(3, 4)), labels=own["b"][3:]).loss)


@pytest.mark.parametrize(("model_type", "head_type"), PAIRS)
def test_labels_that_no_head_reads_are_refused(model_type: str, head_type: str) -> None:
    model = tiny(model_type)
    inputs = inputs_for(model, head_type)
    own = labels_for(head_type)
    assert set(own) <= set(LABELS)
    with pytest.raises(HeadError, match="no head is active"):
        model(**inputs, **own)
    add_head(model, head_type)
    assert model(**inputs, **own).loss is not None
    for name, value in own.items():
        if len(own) > 1:
            with pytest.raises(HeadError, match="no active head computes a loss"):
                model(**inputs, **{name: value})
    other = next(name for name in LABELS if name not in own)
    with pytest.raises(HeadError, match=f"'{other}'"):
        model(**inputs, **{other: torch.zeros(2, dtype=torch.long)})
    assert model(**inputs, **own, **{other: torch.zeros(2, dtype=torch.long)}).loss is not None


def test_labels_of_custom_heads_are_theirs() -> None:
    model = tiny("gpt2")
    model.register_custom_head("mine", Custom)
    model.add_custom_head("mine", "h")
    model.eval()(**inputs_for(model), start_positions=torch.zeros(2))
    assert model.heads["h"].seen == ["start_positions"]


@pytest.mark.parametrize("model_type", dict(PAIRS))
def test_arguments_that_nobody_takes_are_refused(model_type: str) -> None:
    model = tiny(model_type)
    inputs = inputs_for(model)
    with pytest.raises(AdapterNameError, match=r"adapter_names has \['a'\]"):
        model(**inputs, adapter_names=["a", "a", "__base__"])
    with pytest.raises(TypeError, match=r"not its forward"):
        model.forward(**inputs, adapter_names=["a", "a", "__base__"])
    first = model.base_arguments[0]
    for head_type in (None, *model.head_types):
        if head_type is not None:
            add_head(model, head_type, head_type)
            inputs = inputs_for(model, head_type)
        for name in ("label", "adapter_name", "attention_masks", "output_hidden_state"):
            with pytest.raises(TypeError, match=f"does not take the argument '{name}'"):
                model(**inputs, **{name: None})
        with pytest.raises(TypeError, match=f"'{first}' twice"):
            model(inputs[first], **inputs)
        with pytest.raises(TypeError, match="by position"):
            model(*[None] * (len(model.base_arguments) + 1))
        model(**inputs, output_hidden_states=True, return_dict=True, num_items_in_batch=torch.tensor(3))
    model.register_custom_head("mine", Custom)
    model.add_custom_head("mine", "mine")
    with pytest.raises(TypeError, match="not its forward"):
        model.forward(**inputs, adapter_names=["a"])


def test_every_label_name_is_known() -> None:
    for head_type in HEADS:
        assert set(add_head(tiny(OF_TYPE[head_type]), head_type).get_label_names()) <= set(LABELS)
    assert set(ADD) == set(HEADS)


def test_active_heads_exist() -> None:
    model = with_tasks("bert", a="classification", b="classification")
    for wrong in ("x", ["a", "x"], MultiTask("a", "x"), BatchSplit("x", "a", batch_sizes=1), 3):
        with pytest.raises(HeadError):
            model.active_head = wrong
        assert model.active_head == "b"


def test_heads_run_outside_of_a_call_too() -> None:
    model = with_tasks("bert", a="classification", b="classification")
    given, labels = inputs_for(model), torch.tensor([0, 1])
    model.set_active_adapters(Parallel("a", "b"))
    whole = model(**given, labels=labels)
    states = model.bert(**given)
    later = model.forward_head(states, return_dict=True, labels=labels)
    torch.testing.assert_close(later.logits, whole.logits)
    torch.testing.assert_close(later.loss, whole.loss)


@pytest.mark.slow
def test_heads_add_no_break_to_a_graph() -> None:
    torch._dynamo.reset()
    model = with_tasks("bert", a="classification")
    model.set_active_adapters("a")
    given = {**inputs_for(model), **labels_for("classification")}
    want = model(**given)
    got = torch.compile(model, backend="eager", fullgraph=True)(**given)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.logits, want.logits)
