"""Do scripts get the adapters that their arguments ask for?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser

from adapters import AdapterArguments, Stack, setup_adapter_training
from adapters.errors import ConfigError
from tests.tiny import adapter_parameters, build, perturb


def parse(*words: str) -> AdapterArguments:
    (found,) = HfArgumentParser(AdapterArguments).parse_args_into_dataclasses(list(words))
    return found


def stored(folder: Path, name: str, config: str = "lora[r=2]") -> tuple[str, dict[str, torch.Tensor]]:
    """An adapter in a folder, and its tensors."""
    model = build("bert")
    model.add_adapter(name, config=config)
    perturb(model, name)
    model.save_adapter(folder / name, name)
    return str(folder / name), {key: p.detach() for key, p in adapter_parameters(model, name).items()}


def trainable(model: Any) -> set[str]:
    return {key for key, p in model.base_model.named_parameters() if p.requires_grad}


def test_defaults() -> None:
    args = parse()
    assert args == AdapterArguments()
    assert (args.train_adapter, args.load_adapter, args.adapter_config) == (False, "", "seq_bn")
    assert (args.load_lang_adapter, args.lang_adapter_config) == (None, None)


def test_nothing_is_asked_for() -> None:
    model = build("bert")
    assert setup_adapter_training(model, parse(), "task") == (None, None)
    assert not model.has_adapters()
    assert all(p.requires_grad for p in model.parameters())


def test_a_new_adapter() -> None:
    model = build("bert")
    args = parse("--train_adapter", "--adapter_config", "lora[r=2]")
    assert setup_adapter_training(model, args, "task", {"alpha": 7}) == ("task", None)
    config = model.adapters_config.get("task")
    assert (config.r, config.alpha) == (2, 7)
    assert str(model.active_adapters) == "Stack[task]"
    assert trainable(model) == set(adapter_parameters(model, "task"))


def test_an_adapter_that_exists_is_trained_further() -> None:
    model = build("bert")
    model.add_adapter("task", config="ia3")
    setup_adapter_training(model, parse("--train_adapter"), "task")
    assert model.adapters_config.get("task").architecture == "lora"
    assert trainable(model) == set(adapter_parameters(model, "task"))


def test_a_stored_adapter_and_a_language(tmp_path: Path) -> None:
    (task, values), (language, others) = stored(tmp_path, "old"), stored(tmp_path, "de", "seq_bn_inv")
    model = build("bert")
    args = parse("--train_adapter", "--load_adapter", task, "--load_lang_adapter", language)
    assert setup_adapter_training(model, args, "task", None, {"with_head": False}) == ("task", "de")
    assert model.active_adapters == Stack("de", "task")
    assert trainable(model) == set(adapter_parameters(model, "task"))
    for key, tensor in adapter_parameters(model, "task").items():
        assert torch.equal(tensor, values[key.replace(".task.", ".old.")])
    for key, tensor in adapter_parameters(model, "de").items():
        assert torch.equal(tensor, others[key])


@pytest.mark.parametrize("option", ["--load_adapter", "--load_lang_adapter"])
def test_loading_without_training(option: str) -> None:
    model = build("bert")
    with pytest.raises(ValueError, match="'some/where' is to be loaded, but train_adapter is False") as caught:
        setup_adapter_training(model, parse(option, "some/where"), "task")
    assert isinstance(caught.value, ConfigError)
    assert not model.has_adapters()
