"""What cannot be done is refused by an error that says what is allowed, and the model stays exactly as it was."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

import adapters
from adapters import AdapterSetup, Average, BatchSplit, ConfigUnion, Fuse, Parallel, Stack
from adapters.errors import AdapterError, AdapterNameError, CompositionError, ConfigError, MergeError, UnsupportedError
from tests.contract.cases import CONFIGS, carrying
from tests.contract.test_inactive import assert_same_weights, shape, weights
from tests.tiny import build, infer, inputs, perturb

Call = Callable[[Any], Any]


def case(call: Call, error: type[AdapterError], *words: str, id: str) -> Any:
    return pytest.param(call, error, words, id=id)


ADDING = [
    case(lambda m: m.add_adapter("new", "lroa"), ConfigError, "'lroa'", "Did you mean 'lora'?", id="unknown name"),
    case(lambda m: m.add_adapter("new", "lora[rank=4]"), ConfigError, "'rank'", "alpha", "r,", id="unknown option"),
    case(lambda m: m.add_adapter("new", "lora[r=4"), ConfigError, "lora[r=4,dropout=0.1]", id="bracket left open"),
    case(lambda m: m.add_adapter("new", "lora[r=two]"), ConfigError, "literals", id="no literal"),
    case(lambda m: m.add_adapter("new", "lora|lora"), ConfigError, "one place", "leave_out", id="two alike"),
    case(lambda m: m.add_adapter("new", "./nowhere.json"), ConfigError, "nowhere.json", "no such file", id="no file"),
    case(lambda m: m.add_adapter("new", {"architecture": "lroa"}), ConfigError, "'lroa'", "lora", id="unknown method"),
    case(lambda m: m.add_adapter("new", {"mh_adapter": True}), ConfigError, "output_adapter", "missing", id="missing"),
    case(lambda m: m.add_adapter("new", 16), ConfigError, "16", "lora[r=4]", id="a number"),
    case(lambda m: m.add_adapter("new", [1]), ConfigError, "list", "lora[r=4]", id="a list"),
    case(lambda m: m.add_adapter("new", "lora[r=0]"), ConfigError, "r is 0", "at least 1", id="rank"),
    case(lambda m: m.add_adapter("new", "lora[dropout=1.5]"), ConfigError, "dropout is 1.5", "[0, 1]", id="dropout"),
    case(lambda m: m.add_adapter("new", "ia3[r=2]"), ConfigError, "r is 2", "only be 1", id="ia3 with a rank"),
    case(lambda m: m.add_adapter("new", "seq_bn[non_linearity='rolu']"), ConfigError, "relu", id="activation"),
    case(lambda m: m.add_adapter("new", "seq_bn[scaling=2]"), ConfigError, "decimal point", id="scaling"),
    case(lambda m: m.add_adapter("new", "seq_bn[reduction_factor=0]"), ConfigError, "above 0", id="reduction factor"),
    case(lambda m: m.add_adapter("new", "prefix_tuning[prefix_length=0]"), ConfigError, "at least 1", id="prefix"),
    case(
        lambda m: m.add_adapter("new", "prompt_tuning[prompt_init='from_string']"),
        ConfigError,
        "prompt_init_text",
        "needed",
        id="prompt without text",
    ),
    case(
        lambda m: m.add_adapter("new", adapters.SeqBnConfig(reduction_factor={"0": 4})),
        ConfigError,
        "layer 1",
        "'default'",
        id="no factor for a layer",
    ),
    case(
        lambda m: m.add_adapter("new", "seq_bn[leave_out=[0,1]]"),
        ConfigError,
        "'new'",
        "output_adapter",
        "in layers 0-1",
        id="no layer left",
    ),
    case(
        lambda m: m.add_adapter("new", "seq_bn[output_adapter=False]"),
        ConfigError,
        "'new'",
        "no place",
        id="no place chosen",
    ),
    case(
        lambda m: m.add_adapter("new", "lora[selfattn_lora=False]"), ConfigError, "selfattn_lora", id="no matrix chosen"
    ),
    case(
        lambda m: m.add_adapter("new", "loreft[layers=[7]]"),
        ConfigError,
        "of this model are 0-1",
        id="no such layer",
    ),
    case(
        lambda m: m.add_adapter("new", "compacter[reduction_factor=4,phm_dim=5]"),
        ConfigError,
        "phm_dim=5",
        "divide",
        id="phm_dim does not divide",
    ),
    case(lambda m: m.add_adapter("new", "seq_bn_inv[inv_adapter='glow']"), ConfigError, "glow", "nice", id="glow"),
    case(
        lambda m: m.add_adapter("new", ConfigUnion(CONFIGS["seq_bn"], adapters.LoRAConfig(selfattn_lora=False))),
        ConfigError,
        "'new'",
        "LoRAConfig",
        id="one member without a place",
    ),
    case(
        lambda m: m.add_adapter(
            "new", ConfigUnion(adapters.SeqBnConfig(leave_out=[1]), adapters.ParBnConfig(), adapters.LoRAConfig())
        ),
        ConfigError,
        "'new'",
        "layer.0",
        "leave_out",
        id="members meet in one layer",
    ),
    case(lambda m: m.add_adapter("", "lora"), AdapterNameError, "''", id="empty name"),
    case(lambda m: m.add_adapter("a.b", "lora"), AdapterNameError, "'a.b'", "'.'", id="name with a dot"),
    case(lambda m: m.add_adapter("a,b", "lora"), AdapterNameError, "'a,b'", "','", id="name with a comma"),
    case(lambda m: m.add_adapter(3, "lora"), AdapterNameError, "3", id="name that is no string"),
    case(lambda m: m.add_adapter(None, "lora"), AdapterNameError, "None", id="no name"),
    case(lambda m: m.add_adapter("one", "lora"), AdapterNameError, "'one' already", "overwrite_ok", id="taken name"),
    case(
        lambda m: m.add_adapter("one", "lora[r=0]", overwrite_ok=True), ConfigError, "r is 0", id="overwrite: bad value"
    ),
    case(
        lambda m: m.add_adapter("one", "seq_bn[leave_out=[0,1]]", overwrite_ok=True),
        ConfigError,
        "no place",
        id="overwrite: no place",
    ),
]

USING = [
    case(lambda m: m.set_active_adapters("oen"), AdapterNameError, "'oen'", "Did you mean 'one'?", id="activate"),
    case(
        lambda m: m.set_active_adapters(Stack("one", "x")), AdapterNameError, "'x'", "one, two", id="activate a block"
    ),
    case(lambda m: setattr(m, "active_adapters", "x"), AdapterNameError, "'x'", id="assign"),
    case(lambda m: m.train_adapter("x"), AdapterNameError, "'x'", "one, two", id="train"),
    case(
        lambda m: m.train_adapter(Parallel("one", Parallel("two"))),
        CompositionError,
        "cannot contain",
        id="train block",
    ),
    case(lambda m: m.train_adapter_fusion(Fuse("one", "two")), CompositionError, "add_adapter_fusion", id="no fusion"),
    case(lambda m: m.train_adapter_fusion("one"), CompositionError, "no Fuse block", id="train fusion of a name"),
    case(lambda m: m.merge_adapter("x"), AdapterNameError, "'x'", "one, two", id="merge"),
    case(lambda m: m.merge_adapter("one"), MergeError, "'one'", "LoRA", id="merge a bottleneck"),
    case(lambda m: m.adapter_to("x", "cpu"), AdapterNameError, "'x'", "one, two", id="move"),
    case(lambda m: m.adapter_fusion_to("one,two", "cpu"), AdapterError, "one,two", id="move a fusion"),
    case(lambda m: m.eject_prefix_tuning("x"), AdapterNameError, "'x'", id="eject"),
    case(lambda m: m.eject_prefix_tuning("one"), ConfigError, "'one'", "no prefix", id="eject a bottleneck"),
    case(lambda m: m.add_adapter_fusion(["one", "x"]), AdapterNameError, "'x'", "one, two", id="fuse x"),
    case(lambda m: m.add_adapter_fusion([]), AdapterNameError, "at least one", id="fuse nothing"),
    case(lambda m: m.add_adapter_fusion(["one", "two"]), ConfigError, "only 'two' of them acts there", id="fuse"),
    case(
        lambda m: m.add_adapter_fusion(["one"], "dinamic"), ConfigError, "Did you mean 'dynamic'?", id="fusion config"
    ),
    case(lambda m: m.add_adapter_fusion(["one"], {"key": True}), ConfigError, "query", id="fusion fields"),
    case(lambda m: m.add_adapter_fusion(["one"], name="a.b"), AdapterNameError, "'a.b'", id="fusion name"),
    case(lambda m: Average("one", weights=[1, 2]), CompositionError, "[1, 2]", "1 numbers", id="weights"),
    case(lambda m: BatchSplit("one", "two", batch_sizes=[-1, 1]), CompositionError, "[-1, 1]", id="sizes"),
    case(lambda m: AdapterSetup(Fuse("one", Parallel("two"))), CompositionError, "cannot contain", id="context"),
    case(lambda m: Stack("one", ""), CompositionError, "empty string", id="empty child"),
    case(lambda m: Stack("one", 3), CompositionError, "3", "adapter name", id="child of another type"),
]


@pytest.mark.parametrize(("call", "error", "words"), [*ADDING, *USING])
def test_refused(call: Call, error: type[AdapterError], words: tuple[str, ...]) -> None:
    model, given = carrying("bert", "seq_bn", "lora", names=("one", "two")), inputs("bert")
    perturb(model, "one", "two")
    model.train_adapter("one")
    model.eval()
    expected, attributes, before = infer(model, given), shape(model), weights(model)
    with pytest.raises(error) as caught:
        call(model)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert len(message) > 30 and message[0].isupper() | (not message[0].isalpha()) and message.rstrip()[-1] in ".?]", (
        message
    )
    assert isinstance(caught.value, (ValueError, OSError))
    assert list(model.adapters_config) == ["one", "two"]
    assert not model.adapters_config.fusions
    assert str(model.active_adapters) == "Stack[one]"
    assert shape(model) == attributes
    assert_same_weights(model, before)
    assert torch.equal(infer(model, given), expected)


def test_an_old_fusion_stays_when_the_new_one_is_refused() -> None:
    model, given = carrying("bert", "seq_bn", "seq_bn"), inputs("bert")
    perturb(model, "a", "b")
    model.add_adapter_fusion(["a", "b"], set_active=True)
    expected, attributes, before = infer(model, given), shape(model), weights(model)
    for config in ("dinamic", {"key": True}, 3):
        with pytest.raises(ConfigError):
            model.add_adapter_fusion(["a", "b"], config, overwrite_ok=True)
        assert shape(model) == attributes
        assert_same_weights(model, before)
        assert torch.equal(infer(model, given), expected)
    model.add_adapter_fusion(["a", "b"], "static", overwrite_ok=True)
    assert str(model.active_adapters) == "Fuse[a, b]"
    assert not torch.equal(infer(model, given), expected)


def test_a_set_up_of_another_type() -> None:
    model = carrying("bert", "seq_bn", names=("one",))
    for setup in (3, {"a"}, object()):
        with pytest.raises(TypeError, match="is not an adapter set-up"):
            model.set_active_adapters(setup)


def test_a_config_file_that_is_damaged(tmp_path: Path) -> None:
    model = build("bert")
    for name, content in {"cut": '{"config": {"arch', "list": "[1, 2]", "empty": "{}", "wrong": '{"r": 2}'}.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        with pytest.raises(ConfigError):
            model.add_adapter("new", config=str(path))
        assert not model.has_adapters()
    path.write_text(json.dumps({"config": adapters.LoRAConfig(r=2).to_dict()}))
    model.add_adapter("new", config=str(path))


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.add_adapter("a", adapters.LoRAConfig(places=["pooler.dense"])),
        lambda m: m.add_adapter("a", ConfigUnion(CONFIGS["seq_bn"], adapters.LoRAConfig(places=["pooler.dense"]))),
        lambda m: m.add_adapter("a", "glow"),
    ],
)
def test_a_method_that_the_model_cannot_carry(call: Call) -> None:
    for name in ("llama", "t5", "bart"):
        model, given = build(name), inputs(name)
        expected, attributes, before = infer(model, given), shape(model), weights(model)
        with pytest.raises((UnsupportedError, ConfigError)):
            call(model)
        assert shape(model) == attributes and not model.has_adapters()
        assert_same_weights(model, before)
        assert torch.equal(infer(model, given), expected)


def with_peft(model: Any) -> Any:
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]), adapter_name="theirs")
    return model


def wrapped_by_peft(model: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))


def inside_of_peft(model: Any) -> Any:
    return wrapped_by_peft(model).base_model.model


@pytest.mark.parametrize("prepare", [with_peft, wrapped_by_peft, inside_of_peft])
@pytest.mark.parametrize("task", ["base", "classification"])
def test_a_model_with_peft_inside(prepare: Call, task: str) -> None:
    model, given = prepare(build("bert", task, adapted=False)).eval(), inputs("bert")
    kind, attributes, before = type(model), shape(model), weights(model)
    with torch.no_grad():
        expected = model(**given)[0]
    with pytest.raises(UnsupportedError, match=r"PEFT|Transformers model"):
        adapters.init(model)
    assert type(model) is kind and "_engine" not in vars(model)
    assert shape(model) == attributes
    assert_same_weights(model, before)
    with torch.no_grad():
        assert torch.equal(model(**given)[0], expected)


def test_peft_on_top_of_adapters_is_refused() -> None:
    """Both libraries have `add_adapter`: ours wins, and a PEFT config is no config of ours."""
    model = build("bert")
    with pytest.raises(UnsupportedError, match="LoraConfig is a config of PEFT"):
        model.add_adapter("theirs", config=peft.LoraConfig(r=2, target_modules=["query"]))
    assert not model.has_adapters()


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), "bert-base-uncased", None, transformers.BertConfig()])
def test_something_that_is_no_transformers_model(thing: Any) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(type(thing).__name__)):
        adapters.init(thing)


def test_init_twice_changes_nothing() -> None:
    model, given = carrying("bert", "seq_bn"), inputs("bert")
    perturb(model, "a")
    model.set_active_adapters("a")
    expected, engine = infer(model, given), model._engine
    assert adapters.init(model) is model
    assert model._engine is engine and type(model).__mro__.count(adapters.AdapterModelMixin) == 1
    assert torch.equal(infer(model, given), expected)


def test_errors_are_what_callers_expect() -> None:
    from adapters import errors

    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AdapterError)]
    for kind in classes[1:]:
        builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        assert kind.__name__ == kind.__qualname__ != builtin.__name__
        assert kind.__name__ in (errors.__doc__ or "") and builtin.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("method", ["unipelt", "compacter", "seq_bn_inv", "mtl_lora"])
def test_a_failure_half_way_leaves_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building stops in the last layer: nothing of the adapter stays, and the same name can be added afterwards."""
    from adapters.methods.bottleneck import Bottleneck
    from adapters.methods.lora import LoRA

    model, given = carrying("bert", "seq_bn", names=("one",)), inputs("bert")
    attributes, before, expected = shape(model), weights(model), infer(model, given)
    twin = copy.deepcopy(model)
    for owner in (Bottleneck, LoRA):
        original = owner.__init__

        def fail(self: Any, config: Any, site: Any, name: str, original: Any = original) -> None:
            original(self, config, site, name)
            if site.layer == 1:
                raise MemoryError("no room")

        monkeypatch.setattr(owner, "__init__", fail)
    with pytest.raises(MemoryError):
        model.add_adapter("new", config=CONFIGS[method])
    monkeypatch.undo()
    assert list(model.adapters_config) == ["one"] and shape(model) == attributes
    assert_same_weights(model, before)
    assert torch.equal(infer(model, given), expected)
    for each in (model, twin):
        torch.manual_seed(0)
        each.add_adapter("new", config=CONFIGS[method])
    assert list(model.state_dict()) == list(twin.state_dict())


def numbers() -> Iterator[Any]:
    """(method, field) for every field of a config that holds a number."""
    for method, config in CONFIGS.items():
        for field, value in () if isinstance(config, ConfigUnion) else vars(config).items():
            idle = field == "dropout" and config.kind == "ia3" if isinstance(config, adapters.LoRAConfig) else False
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not idle:
                yield pytest.param(method, field, id=f"{method} {field}")


@pytest.mark.parametrize(("method", "field"), list(numbers()))
@pytest.mark.parametrize("value", [10**7, 10**30, 1e-300])
def test_sizes_beyond_reason(method: str, field: str, value: float) -> None:
    """A new adapter is made as asked, or refused by an error of ours, before memory is asked for."""
    model = build("bert")
    before = weights(model)
    with contextlib.suppress(ConfigError):
        model.add_adapter("new", CONFIGS[method].replace(**{field: value}))
        assert sum(parameter.numel() for parameter in model.parameters()) < 10**9
        model.delete_adapter("new")
    assert_same_weights(model, before)


@pytest.mark.parametrize(
    "config",
    [
        "lora[r=10000000]",
        "prefix_tuning[prefix_length=10000000]",
        "seq_bn[reduction_factor=1e-300]",
        "vera[r=10000000]",
    ],
)
def test_adapters_far_larger_than_the_model(config: str) -> None:
    with pytest.raises(ConfigError, match="smaller size"):
        build("bert").add_adapter("new", config)
