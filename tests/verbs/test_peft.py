"""Do the verbs that models inherit from Transformers' PEFT mixin have our meaning, and do the libraries keep apart?"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Trainer
from transformers.integrations.peft import PeftAdapterMixin

import adapters
from adapters import AdapterTrainer, Parallel, Stack
from adapters.checkpoint.tensors import read_safetensors
from adapters.errors import (
    AdapterError,
    AdapterNameError,
    CheckpointError,
    CompositionError,
    MergeError,
    UnsupportedError,
)
from adapters.model import AdapterModelMixin
from tests.heads.models import add_head
from tests.heads.models import tiny as flexible
from tests.tiny import TINY_MODELS, build, hooks, infer, inputs, perturb
from tests.training.toy import any_examples, arguments

pytestmark = pytest.mark.versions

COMPACTER = "compacter[phm_dim=2,reduction_factor=8]"
PEFT_CONFIGS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(target_modules=["q_proj"]),
    "lora of a task": lambda: peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=8),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
}


def adapted(name: str = "bert", *methods: str) -> Any:
    model = build(name, "lm" if name in ("llama", "t5") else "base")
    for number, method in enumerate(methods or ("lora",)):
        model.add_adapter("abc"[number], config=method)
        perturb(model, "abc"[number], seed=number)
    model.set_active_adapters("a")
    return model


def test_every_inherited_verb_is_ours() -> None:
    inherited = [name for name in vars(PeftAdapterMixin) if not name.startswith("__")]
    assert {"load_adapter", "disable_adapters", "get_adapter_state_dict"} <= set(inherited)
    for name in {*inherited, "peft_config"} - {"_dispatch_accelerate_model", "_prepare_peft_hotswap_kwargs"}:
        owner = next(cls for cls in AdapterModelMixin.__mro__ if name in vars(cls))
        assert owner.__module__.startswith("adapters."), name


@pytest.mark.parametrize("name", TINY_MODELS)
def test_disabling_runs_the_base_model(name: str) -> None:
    plain, model, given = build(name, adapted=False), build(name), inputs(name)
    model.add_adapter("a", config="seq_bn")
    perturb(model, "a")
    model.set_active_adapters("a", skip_layers=[0])
    want, with_adapter = infer(plain, given), infer(model, given)
    assert not torch.allclose(want, with_adapter)
    with model.disable_adapters():
        assert torch.equal(infer(model, given), want)
        with model.disable_adapters():
            assert torch.equal(infer(model, given), want)
    assert torch.equal(infer(model, given), with_adapter)
    model.disable_adapters()
    assert torch.equal(infer(model, given), want)
    model.enable_adapters()
    model.enable_adapters()
    assert torch.equal(infer(model, given), with_adapter)
    assert model.adapters_config.skip_layers == [0]


def test_disabling_leaves_what_is_set_afterwards() -> None:
    model = adapted("bert", "lora", "ia3")
    model.disable_adapters()
    model.set_active_adapters("b")
    model.enable_adapters()
    assert model.active_adapters == Stack("b")
    with pytest.raises(ZeroDivisionError), model.disable_adapters():
        1 / 0  # noqa: B018
    assert model.active_adapters == Stack("b")
    model.disable_adapters()
    model.delete_adapter("b")
    with pytest.raises(AdapterNameError):
        model.enable_adapters()
    model.enable_adapters()
    model.merge_adapter("a")
    with pytest.raises(MergeError, match="reset_adapter"):
        model.disable_adapters()


def test_disabling_keeps_heads() -> None:
    model = flexible("bert")
    for name in "ab":
        add_head(model, "classification", name)
        model.add_adapter(name, config="lora")
    model.set_active_adapters("a")
    model.active_head = "b"
    with model.disable_adapters():
        assert model.active_head == "b"
    assert (model.active_adapters, model.active_head) == (Stack("a"), "b")


def test_names_of_what_is_active() -> None:
    model = adapted("bert", "lora", "lora")
    assert model.active_adapter == "a"
    model.set_active_adapters(Stack("b", "a"))
    assert model.active_adapter == "a"
    model.set_active_adapters(None)
    assert model.active_adapter is None
    model.set_adapter(["b"])
    assert model.active_adapters == Stack("b")
    with pytest.raises(CompositionError, match=r"Stack\('a', 'b'\)"):
        model.set_adapter(["a", "b"])
    assert model.active_adapters == Stack("b")
    model.set_adapter([])
    assert model.active_adapters is None
    model.set_adapter(Parallel("a", "b"))
    model.delete_adapter(["a", "b", "nowhere"])
    assert not model.has_adapters()


@pytest.mark.parametrize("method", ["lora", "seq_bn_inv", "prefix_tuning", COMPACTER, "loreft", "mam"])
def test_tensors_are_those_of_the_file(method: str, tmp_path: Path) -> None:
    model = adapted("bert", method)
    model.save_adapter(str(tmp_path), "a")
    file = read_safetensors(tmp_path / "adapter.safetensors")
    found = model.get_adapter_state_dict()
    assert found.keys() == file.keys()
    assert all(torch.equal(tensor, file[key]) and not tensor.requires_grad for key, tensor in found.items())
    doubled = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(t, 2 * file[k]) for k, t in model.get_adapter_state_dict("a", doubled).items())
    with pytest.raises(CheckpointError, match="lacks tensors"):
        model.get_adapter_state_dict("a", {})
    model.set_active_adapters(None)
    for name in (None, "nowhere"):
        with pytest.raises(AdapterNameError):
            model.get_adapter_state_dict(name)


def test_what_has_no_meaning_here_says_what_to_do() -> None:
    model = adapted("llama")
    before = copy.deepcopy(model.state_dict())
    for config in PEFT_CONFIGS.values():
        for given in ((config(),), ("x", config()), (config(), "x")):
            with pytest.raises(UnsupportedError, match="config of PEFT"):
                model.add_adapter(*given)
    with pytest.raises(UnsupportedError, match="load_adapter"):
        model.enable_peft_hotswap(target_rank=8)
    with pytest.raises(TypeError, match="adapter_name"):
        model.load_adapter("nowhere", adapter_name="x")
    assert before.keys() == model.state_dict().keys() and list(model.adapters_config) == ["a"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("mixed", [False, True], ids=["", "mixed"])
@pytest.mark.parametrize("name", PEFT_CONFIGS)
@pytest.mark.parametrize("added", [False, True], ids=["no adapter", "an adapter"])
def test_peft_does_not_wrap_our_models(name: str, added: bool, mixed: bool) -> None:
    if mixed and not name.startswith(("lora", "oft")):
        pytest.skip("PEFT does not mix it")
    model = adapted("llama") if added else build("llama", "lm")
    model.train_adapter("a") if added else None
    before = {key: p.requires_grad for key, p in model.named_parameters()}
    found = hooks(model)
    with pytest.raises(UnsupportedError, match="Give PEFT a plain model"):
        peft.get_peft_model(model, PEFT_CONFIGS[name](), mixed=mixed)
    if not mixed and not PEFT_CONFIGS[name]().is_prompt_learning:
        with pytest.raises(UnsupportedError, match="Give PEFT a plain model"):
            peft.inject_adapter_in_model(PEFT_CONFIGS[name](), model)
    assert {key: p.requires_grad for key, p in model.named_parameters()} == before
    assert hooks(model) == found


def test_only_peft_sees_the_attributes_that_tell_it() -> None:
    model = adapted("llama")
    assert not hasattr(model, "peft_config") and not hasattr(model, "prompt_encoder")
    assert "peft_config" not in dict(inspect.getmembers(model))
    assert hasattr(peft.get_peft_model(build("llama", "lm", adapted=False), PEFT_CONFIGS["lora"]()), "peft_config")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda model: model.add_adapter("a", config="lora"),
        lambda model: model.add_adapter("a"),
        lambda model: model.set_adapter("a"),
        lambda model: model.load_adapter("nowhere"),
        lambda model: model.disable_adapters(),
        lambda model: model.enable_peft_hotswap(),
        lambda model: model.delete_adapter("a"),
    ],
)
def test_verbs_before_init_leave_no_mark(attempt: Any) -> None:
    model = build("llama", "lm", adapted=False)
    try:
        attempt(model)
    except AdapterError:
        raise
    except Exception:
        pass
    adapters.init(model)
    model.add_adapter("a", config="lora", set_active=True)
    assert not model._hf_peft_config_loaded


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_models_with_adapters_of_peft_are_refused() -> None:
    added, injected = (build("llama", "lm", adapted=False) for _ in range(2))
    added.add_adapter(PEFT_CONFIGS["lora"](), "x")
    peft.inject_adapter_in_model(PEFT_CONFIGS["lora"](), injected)
    for model in (added, injected):
        with pytest.raises(UnsupportedError, match="PEFT adapters loaded"):
            adapters.init(model)
    del injected.peft_config
    with pytest.raises(UnsupportedError, match="PEFT adapters loaded"):
        adapters.init(injected)


class Quantizer:
    """What the Trainer asks a quantiser."""

    is_trainable = True
    is_qat_trainable = False


def quantised(name: str = "llama") -> Any:
    model = build(name, "lm", adapted=False)
    model.is_quantized, model.hf_quantizer = True, Quantizer()
    return adapters.init(model)


@pytest.mark.parametrize("method", ["lora", "seq_bn", "ia3", "prefix_tuning", "loreft"])
def test_a_quantised_base_trains_where_something_is_attached(method: str) -> None:
    model = quantised()
    assert not model._hf_peft_config_loaded
    model.add_adapter("a", config=method)
    assert model._hf_peft_config_loaded
    model.delete_adapter("a")
    assert not model._hf_peft_config_loaded


@pytest.mark.parametrize("trainer", [Trainer, AdapterTrainer])
def test_trainers_take_a_quantised_base_that_has_adapters(trainer: Any, tmp_path: Path) -> None:
    model, options = quantised(), {"train_dataset": any_examples("llama"), "args": arguments(tmp_path, max_steps=1)}
    model.add_adapter("a", config="lora")
    model.train_adapter("a")
    trainer(model, **options).train()
    model.merge_adapter("a")
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(model, **options)
    model.add_adapter("b", config="lora")
    model.train_adapter("b")
    trainer(model, **options).train()
    model.delete_adapter("b")
    model.reset_adapter()
    model.train_adapter("a")
    model.hf_quantizer.is_trainable = False
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(model, **options)
    model.delete_adapter("a")
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(model, **options)


def test_a_quantised_model_is_saved_as_a_whole(tmp_path: Path) -> None:
    model = quantised()
    model.add_adapter("a", config="lora")
    del model.hf_quantizer
    assert model._hf_peft_config_loaded
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "config.json").exists()
    assert any("loras.a" in key for key in read_safetensors(tmp_path / "model.safetensors"))
    assert model._hf_peft_config_loaded
    assert "state_dict" in inspect.signature(model.save_pretrained).parameters
