"""Are options that no head can have refused before anything is made, with the model as it was?"""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
import pytest
import torch

from adapters.errors import HeadError
from adapters.heads import HEADS
from adapters.heads.adding import AddHeadMethods
from adapters.heads.options import MOST_LABELS, MOST_LAYERS, RULES, label_map
from adapters.heads.registry import register_custom_head
from tests.heads.custom import Custom
from tests.heads.models import ADD, OF_TYPE, add_head, inputs_for, tiny

WRONG: dict[str, tuple[Any, ...]] = {
    "num_labels": (0, -1, 2.0, "2", None, True, float("nan"), MOST_LABELS + 1, 10**30),
    "num_choices": (0, 1.5, "2", None, 10**30),
    "layers": (0, 1.0, "2", None, True, MOST_LAYERS + 1, 10**30),
    "vocab_size": (-1, 6.4, "64", 10**30),
    "embedding_size": (-1, 3.2, [32], 10**30),
    "dropout_prob": (-0.1, 1.1, float("nan"), float("inf"), "0.1", True, [0.1]),
    "activation_function": ("tangent", 3, ["tanh"]),
    "id2label": (["no", "yes"], {"no": "yes"}, {0: ["no"]}, 2),
    "label2id": ([0, 1], {"no": "zero"}, {"no": None}, 2),
    "structure": ([], {"inner_size": 0}, {"pooling": "best"}, {"scale": -1}, {"norm_eps": float("inf")}, {"width": 3}),
    "blank": (-1, 1.5, "2", True),
    "reduction": ("none", 3, ["sum"]),
    "zero_infinity": ("yes", 1, 0.0, []),
    **dict.fromkeys(("multilabel", "use_pooler", "bias", "layer_norm", "shift_labels"), (None, "yes", 1, 0.0, [])),
}


def state_of(model: Any) -> tuple[Any, ...]:
    config = model.config
    return dict(model.heads.named_children()), dict(config.prediction_heads), model.active_head, dict(config.id2label)


def test_every_option_of_a_built_in_head_has_a_rule() -> None:
    options = {name for cls in HEADS.values() for name in inspect.signature(cls).parameters} - {"model", "head_name"}
    assert options == set(WRONG)
    assert options | {"head_type"} == {*RULES, "id2label", "label2id"}


@pytest.mark.parametrize("head_type", HEADS)
def test_wrong_values_change_nothing(head_type: str) -> None:
    model = tiny(OF_TYPE[head_type])
    add_head(model, head_type, "kept")
    before = state_of(model)
    for option in set(inspect.signature(HEADS[head_type]).parameters) & set(WRONG):
        unused = head_type.endswith(("_lm", "ctc")) and option in ("id2label", "label2id")
        for value in () if unused else WRONG[option]:
            config = {"head_type": head_type, option: value}
            with pytest.raises(HeadError):
                model.add_prediction_head_from_config("new", config)
            with pytest.raises(HeadError):
                model.add_prediction_head_from_config("kept", config, overwrite_ok=True)
            assert state_of(model) == before


@pytest.mark.parametrize("head_type", HEADS)
def test_nothing_is_allocated_for_what_is_refused(head_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(OF_TYPE[head_type])

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a tensor was made")

    monkeypatch.setattr(torch, "empty", refuse)
    options = {"num_labels", "num_choices", "layers", "vocab_size"} & set(
        inspect.signature(HEADS[head_type]).parameters
    )
    assert options
    for option in options:
        with pytest.raises(HeadError, match=option):
            model.add_prediction_head_from_config("new", {"head_type": head_type, option: 10**8})


def test_configs_that_are_none() -> None:
    model = tiny("bert")
    for config in (
        None,
        [],
        "tagging",
        {"num_labels": 2},
        {"head_type": "tagging", "head_name": "x"},
        {"head_type": []},
    ):
        with pytest.raises(HeadError):
            model.add_prediction_head_from_config("new", config)
    with pytest.raises(AttributeError, match="Unknown head type"):
        model.add_prediction_head_from_config("new", {"head_type": "taging"})
    assert not model.heads


def test_numbers_of_other_libraries_are_numbers() -> None:
    model = tiny("bert")
    model.add_classification_head("h", num_labels=np.int64(3), dropout_prob=np.float32(0.5))
    assert model(**inputs_for(model)).logits.shape == (2, 3)
    assert json.loads(json.dumps(model.heads["h"].config))["num_labels"] == 3
    assert label_map({"1": "b", 0: "a"}, None, 2) == {"b": 1, "a": 0}  # type: ignore[dict-item]


def test_custom_heads_are_checked_where_they_are_built() -> None:
    model = tiny("bert")
    model.register_custom_head("mine", Custom)
    with pytest.raises(HeadError, match="layers is 0"):
        model.add_custom_head("mine", "h", layers=0)
    model.register_custom_head("none", lambda model, name, **config: torch.nn.Linear(2, 2))
    with pytest.raises(HeadError, match="made a Linear"):
        model.add_custom_head("none", "h")
    with pytest.raises(HeadError, match="is no head"):
        model.add_prediction_head(torch.nn.Linear(2, 2))
    for identifier, factory in ((3, Custom), ("", Custom), ("x", "Custom")):
        with pytest.raises(HeadError):
            model.register_custom_head(identifier, factory)
        with pytest.raises(HeadError):
            register_custom_head(identifier, factory)  # type: ignore[arg-type]
    assert not model.heads and set(model.custom_heads) == {"mine", "none"}


@pytest.mark.parametrize("head_type", HEADS)
def test_verbs_have_the_options_of_their_class(head_type: str) -> None:
    verb = ADD[head_type][0]
    ours = dict(inspect.signature(getattr(AddHeadMethods, verb)).parameters)
    theirs = dict(inspect.signature(HEADS[head_type]).parameters)
    assert getattr(AddHeadMethods, verb).__name__ == verb
    for name in ("self", "head_name", "overwrite_ok", "set_active"):
        ours.pop(name)
    if "multilabel" not in theirs:
        ours.pop("multilabel", None)
    assert ours.keys() <= theirs.keys()
    differ = {name for name, parameter in ours.items() if parameter.default != theirs[name].default}
    assert differ == ({"layers", "activation_function", "layer_norm", "bias"} if head_type == "causal_lm" else set())
    with pytest.raises(TypeError, match="unexpected keyword argument 'lairs'"):
        add_head(tiny(OF_TYPE[head_type]), head_type, lairs=2)


def test_positions_of_options_are_kept() -> None:
    model = tiny("bert")
    model.add_classification_head("h", 3, 1, None, False, True, None, False, False, 0.25, False)
    config = model.heads["h"].config
    assert model.active_head is None
    assert (config["head_type"], config["num_labels"], config["layers"]) == ("multilabel_classification", 3, 1)
    assert (config["activation_function"], config["bias"], config["dropout_prob"]) == (None, False, 0.25)
