"""Do the verbs of the base model inside of a model with adapters mean the same as those of the whole model?"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers.integrations.peft import PeftAdapterMixin

import adapters
from adapters import AdapterSetup, Stack
from adapters.errors import AdapterNameError, UnsupportedError
from adapters.model import AdapterModelMixin
from tests.heads.models import CONFIGS
from tests.heads.models import tiny as flexible
from tests.tiny import TINY_MODELS, build, hooks, infer, inputs, perturb


def whole(name: str) -> Any:
    """A model whose base model stands inside of it."""
    model = build(name, "classification")
    assert model.base_model is not model
    return model


@pytest.mark.parametrize("name", TINY_MODELS)
def test_verbs_on_the_base_model_act_on_the_whole_one(name: str) -> None:
    model, given = whole(name), inputs(name, "classification")
    base, plain = model.base_model, infer(model, given)
    base.add_adapter("a", config="seq_bn")
    perturb(model, "a")
    assert base.adapters_config is model.adapters_config
    base.active_adapters = "a"
    assert model.active_adapters == base.active_adapters == Stack("a")
    changed = infer(model, given)
    assert not torch.equal(changed, plain)
    with base.disable_adapters():
        assert torch.equal(infer(model, given), plain)
    base.train_adapter("a")
    assert model.model_frozen and base.model_frozen
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained and trained == {key for key, p in whole_trained(name).named_parameters() if p.requires_grad}
    base.delete_adapter("a")
    assert not model.has_adapters() and not hooks(model)
    assert torch.equal(infer(model.eval(), given), plain)


def whole_trained(name: str) -> Any:
    model = whole(name)
    model.add_adapter("a", config="seq_bn")
    model.train_adapter("a")
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_flexible_models_have_base_models_with_verbs_too(name: str) -> None:
    model = flexible(name)
    model.base_model.add_adapter("a", config="lora", set_active=True)
    assert model.active_adapters == Stack("a")


def test_every_verb_is_that_of_the_whole_model() -> None:
    model = whole("bert")
    base = model.base_model
    own = {"save_pretrained", "load_state_dict", "from_pretrained", "generate", "enable_input_require_grads"}
    own |= {"set_output_embeddings", "peft_config", "prompt_encoder", "forward_context", "create_masks_for_generate"}
    names = {name for name in dir(AdapterModelMixin) if not name.startswith("_")} - own
    assert {"add_adapter", "push_adapter_to_hub", "save_head", "active_adapters", "set_adapter"} <= names
    for name in names:
        if name not in {"active_adapter", "active_embeddings", "loaded_embeddings"}:
            assert getattr(base, name) == getattr(model, name), name
    for name in {name for name in vars(PeftAdapterMixin) if not name.startswith("_")}:
        owner = next(kind for kind in type(base).__mro__ if name in vars(kind))
        assert owner.__module__.startswith("adapters."), name


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_a_base_model_of_its_own(copied: Any) -> None:
    model, given = whole("bert"), inputs("bert")
    model.add_adapter("a", config="lora", set_active=True)
    perturb(model, "a")
    other, want = copied(model), infer(model, given)
    assert torch.equal(infer(other, given), want)
    other.bert.set_active_adapters(None)
    assert not torch.equal(infer(other, given), want)
    assert torch.equal(infer(model, given), want)


def test_configs_of_peft_are_refused_and_peft_refuses_the_base_model() -> None:
    base = whole("bert").bert
    with pytest.raises(UnsupportedError, match="config of PEFT"):
        base.add_adapter(peft.LoraConfig())
    with pytest.raises(UnsupportedError, match="has adapters of this library"):
        peft.get_peft_model(base, peft.LoraConfig())


@pytest.mark.parametrize("attached", [False, True])
def test_calls_of_the_base_model_follow_setups(attached: bool) -> None:
    model, given = whole("bert"), inputs("bert")
    if attached:
        model.add_adapter("a", config="lora")
    want = infer(model.bert, given)
    with AdapterSetup("x"), pytest.raises(AdapterNameError, match="'x'"):
        model.bert(**given)
    with pytest.raises(AdapterNameError, match="adapter_names"):
        model.bert(**given, adapter_names=["x"])
    assert torch.equal(infer(model.bert, given), want)


@pytest.mark.parametrize("config", ["lora", "compacter[phm_dim=2,reduction_factor=8]", "prefix_tuning"])
def test_a_base_model_is_saved_with_its_adapters(tmp_path: Path, config: str) -> None:
    model, given = whole("bert"), inputs("bert")
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a")
    model.bert.save_pretrained(tmp_path)
    loaded = adapters.load_model(tmp_path, type(build("bert", adapted=False))).eval()
    loaded.set_active_adapters("a")
    assert torch.equal(infer(loaded, given), infer(model.bert, given))


def test_init_takes_a_base_model_with_verbs_as_it_is() -> None:
    model = whole("bert")
    assert adapters.init(model.bert) is model.bert
    plain = build("bert", "classification", adapted=False)
    plain.bert = build("bert")
    kind = type(plain)
    with pytest.raises(UnsupportedError, match="has adapters already"):
        adapters.init(plain)
    assert type(plain) is kind


def test_the_class_of_a_base_model_makes_plain_models(tmp_path: Path) -> None:
    model = whole("bert")
    plain = type(build("bert", adapted=False))
    model.bert.save_pretrained(tmp_path)
    kind = type(model.bert)
    for made in (kind(model.config), kind.from_pretrained(tmp_path), kind._from_config(model.config)):
        assert type(made) is plain
    assert isinstance(adapters.load_model(tmp_path, kind), AdapterModelMixin)
