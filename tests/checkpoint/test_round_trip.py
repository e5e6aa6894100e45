"""Does an adapter come back from its files exactly as it went in, with every method, class and format?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

import adapters
from adapters.checkpoint.layout import ADAPTER, version_numbers
from tests.contract.cases import CONFIGS, REPRESENTATIVE, carrying, every_pair
from tests.tiny import TINY_MODELS, build, infer, inputs, perturb


def trained(name: str, method: str, task: str = "base") -> Any:
    model = carrying(name, method, task=task)
    perturb(model, "a")
    model.set_active_adapters("a")
    return model


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ADAPTER.config).read_text())  # type: ignore[no-any-return]


def same_files(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / ADAPTER.safetensors) for folder in (one, other))
    equal = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    return equal and stored(one)["config"] == stored(other)["config"]


@every_pair(names=REPRESENTATIVE)
def test_every_method(method: str, name: str, tmp_path: Path) -> None:
    model, given = trained(name, method), inputs(name)
    expected = infer(model, given)
    model.save_adapter(tmp_path / "one", "a")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted([ADAPTER.config, ADAPTER.safetensors])

    fresh = build(name)
    state = torch.random.get_rng_state()
    assert fresh.load_adapter(tmp_path / "one") == "a"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fresh.adapters_config.get("a") == CONFIGS[method]
    assert fresh.active_adapters is None
    fresh.set_active_adapters("a")
    assert torch.equal(infer(fresh, given), expected)
    fresh.save_adapter(tmp_path / "two", "a")
    assert same_files(tmp_path / "one", tmp_path / "two")


@every_pair(names=("bert", "t5"))
def test_under_another_name_and_as_pickle(method: str, name: str, tmp_path: Path) -> None:
    model, given = trained(name, method), inputs(name)
    model.save_adapter(tmp_path, "a", use_safetensors=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ADAPTER.config, ADAPTER.pickle])
    fresh = carrying(name, method)
    before = infer(fresh, given)
    assert fresh.load_adapter(tmp_path, load_as="other", set_active=True) == "other"
    assert torch.equal(infer(fresh, given), infer(model, given))
    fresh.set_active_adapters(None)
    assert torch.equal(infer(fresh, given), before)


@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.parametrize("method", ["unipelt", "mam"])
def test_every_architecture_from_and_to_classes_with_a_head(method: str, name: str, tmp_path: Path) -> None:
    task = "classification"
    plain, headed = trained(name, method), trained(name, method, task)
    plain.save_adapter(tmp_path / "plain", "a")
    headed.save_adapter(tmp_path / "headed", "a", with_head=False)
    prefix = "" if headed.base_model is headed else f"{headed.base_model_prefix}."
    files = {source: load_file(tmp_path / source / ADAPTER.safetensors) for source in ("plain", "headed")}
    assert files["headed"].keys() == {prefix + key for key in files["plain"]}
    for source, tensors in files.items():
        for model in (build(name), build(name, task)):
            model.load_adapter(tmp_path / source, with_head=False)
            model.save_adapter(tmp_path / "again", "a", with_head=False)
            again = load_file(tmp_path / "again" / ADAPTER.safetensors)
            assert [*map(torch.Tensor.tolist, again.values())] == [*map(torch.Tensor.tolist, tensors.values())]


def test_what_the_config_file_says(tmp_path: Path) -> None:
    model = carrying("bert", "lora", task="classification")
    model.save_adapter(tmp_path, "a", meta_dict={"note": 1, "name": "not this"}, with_head=False)
    text = (tmp_path / ADAPTER.config).read_text()
    data = json.loads(text)
    assert text == json.dumps(data, indent=2, sort_keys=True)
    assert data == {
        "config": model.adapters_config.get("a").to_dict(),
        "hidden_size": 32,
        "model_class": "BertForSequenceClassification",
        "model_name": model.config.name_or_path,
        "model_type": "bert",
        "name": "a",
        "note": 1,
        "version": data["version"],
    }
    assert data["version"].startswith("adapters.")
    assert version_numbers(data["version"].removeprefix("adapters.")) >= (1, 1, 0)


@pytest.mark.parametrize("config", ["lora[r=4,alpha=6]", "lora[r=2,alpha=16]"])
def test_the_scaling_of_our_own_files_is_kept(config: str, tmp_path: Path) -> None:
    model, given = build("bert"), inputs("bert")
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a")
    model.save_adapter(tmp_path, "a")
    fresh = build("bert")
    fresh.load_adapter(tmp_path, set_active=True)
    assert fresh.adapters_config.get("a").alpha == model.adapters_config.get("a").alpha
    assert torch.equal(infer(fresh, given), infer(model, given))


def test_direft_stays_direft(tmp_path: Path) -> None:
    for method, written in (("direft", False), ("noreft", None)):
        model = trained("bert", method)
        model.save_adapter(tmp_path / method, "a")
        assert stored(tmp_path / method)["config"].get("subtract_projection") is written


def test_an_ejected_prefix(tmp_path: Path) -> None:
    for method in ("prefix_tuning", "mam"):
        model, given = trained("llama", method), inputs("llama")
        model.eject_prefix_tuning("a")
        model.set_active_adapters("a")
        model.save_adapter(tmp_path / method, "a")
        fresh = build("llama")
        fresh.load_adapter(tmp_path / method, set_active=True)
        assert torch.equal(infer(fresh, given), infer(model, given))


def test_an_ejected_prefix_whose_config_says_otherwise(tmp_path: Path) -> None:
    model, given = trained("bert", "prefix_tuning"), inputs("bert")
    model.eject_prefix_tuning("a")
    model.set_active_adapters("a")
    model.save_adapter(tmp_path, "a")
    data = stored(tmp_path)
    assert data["config"]["flat"] is True
    data["config"]["flat"] = False
    (tmp_path / ADAPTER.config).write_text(json.dumps(data))
    fresh = build("bert")
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(infer(fresh, given), infer(model, given))


def test_loading_again_replaces_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, given = trained("bert", "dora"), inputs("bert")
    expected = infer(model, given)
    model.save_adapter(tmp_path, "a")
    perturb(model, "a", seed=3)
    model.merge_adapter("a")
    changed = infer(model, given)
    model.load_adapter(tmp_path)
    assert "already" in caplog.text
    assert torch.equal(infer(model, given), expected)
    assert not torch.allclose(changed, expected)
    other = carrying("bert", "lora")
    with pytest.raises(ValueError, match="another config"):
        other.load_adapter(tmp_path)
    assert other.adapters_config.get("a") == CONFIGS["lora"]


def test_writing_the_other_format_removes_the_old_file(tmp_path: Path) -> None:
    model = trained("bert", "lora")
    for use_safetensors in (False, True, False):
        model.save_adapter(tmp_path, "a", use_safetensors=use_safetensors)
        written = ADAPTER.safetensors if use_safetensors else ADAPTER.pickle
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ADAPTER.config, written])


def test_which_file_is_read(tmp_path: Path) -> None:
    model = trained("bert", "lora")
    model.save_adapter(tmp_path, "a")
    tensors = load_file(tmp_path / ADAPTER.safetensors)
    torch.save({key: tensor + 1 for key, tensor in tensors.items()}, tmp_path / ADAPTER.pickle)
    key, value = next(iter(tensors.items()))
    for use_safetensors, expected in ((True, value), (False, value + 1)):
        fresh = build("bert")
        fresh.load_adapter(tmp_path, use_safetensors=use_safetensors)
        assert torch.equal(fresh.state_dict()[key], expected)


def test_dtype_and_mode_follow_the_model(tmp_path: Path) -> None:
    trained("bert", "double_seq_bn").save_adapter(tmp_path, "a")
    model = build("bert").to(torch.bfloat16).train()
    model.load_adapter(tmp_path)
    modules = [part.module for part in model._engine.parts["a"]]
    assert all(p.dtype == torch.bfloat16 for module in modules for p in module.parameters())
    assert all(module.training for module in modules)
    assert all(p.requires_grad for module in modules for p in module.parameters())


def test_all_adapters(tmp_path: Path) -> None:
    model = carrying("bert", "lora", "seq_bn", "prefix_tuning")
    perturb(model, "a", "b", "c")
    model.save_all_adapters(tmp_path, meta_dict={"note": 1})
    fresh = build("bert")
    for name in "abc":
        assert stored(tmp_path / name)["note"] == 1
        fresh.load_adapter(tmp_path / name)
    ids = {stored(tmp_path / name)["config_id"] for name in "abc"}
    assert len(ids) == 3
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "..\\out", "C:\\out"])
def test_names_do_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    model = build("bert")
    if "." not in name:
        model.add_adapter(name, config="lora")
        with pytest.raises(ValueError, match="folder"):
            model.save_all_adapters(tmp_path / "in")
    model.add_adapter("a", config="lora")
    model.save_adapter(tmp_path, "a")
    data = stored(tmp_path)
    data["name"] = name
    (tmp_path / ADAPTER.config).write_text(json.dumps(data))
    tensors = {key.replace(".a.", f".{name}."): t for key, t in load_file(tmp_path / ADAPTER.safetensors).items()}
    save_file(tensors, tmp_path / ADAPTER.safetensors)
    if "." in name:
        with pytest.raises(ValueError, match="cannot name an adapter"):
            model.load_adapter(tmp_path)
    assert not (tmp_path.parent / "out").exists()


def test_a_slash_makes_a_folder_inside(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("org/task", config="lora")
    model.save_all_adapters(tmp_path)
    assert (tmp_path / "org" / "task" / ADAPTER.config).is_file()
    fresh = build("bert")
    assert fresh.load_adapter(tmp_path / "org" / "task") == "org/task"


def test_prompts_that_start_from_a_text_need_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        def __call__(self, text: str, **kwargs: Any) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split()]}

    with monkeypatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **kwargs: Words())
        model = build("bert")
        config = adapters.PromptTuningConfig(prompt_length=3, prompt_init="from_string", prompt_init_text="one three")
        model.add_adapter("a", config=config)
    model.save_adapter(tmp_path, "a")
    fresh = build("bert")
    fresh.load_adapter(tmp_path)
    assert fresh.adapters_config.get("a") == config
    assert torch.equal(values(fresh), values(model))


def values(model: Any) -> Tensor:
    return torch.cat([p.flatten() for part in model._engine.parts["a"] for p in part.module.parameters()])


def test_custom_weights_loaders(tmp_path: Path) -> None:
    calls: list[Any] = []

    class Loader:
        def save(self, folder: Any, name: str) -> None:
            calls.append(("save", Path(folder), name))

        def load(self, folder: Any, load_as: str, loading_info: Any) -> None:
            calls.append(("load", Path(folder), load_as))

    loaders = (Loader(),)
    trained("bert", "lora").save_adapter(tmp_path, "a", custom_weights_loaders=loaders)
    build("bert").load_adapter(tmp_path, load_as="b", custom_weights_loaders=loaders)
    (saved, written, name), loaded = calls
    assert (saved, name) == ("save", "a") and loaded == ("load", tmp_path, "b")
    assert written.parent == tmp_path and not written.exists()  # all files of a save take their places at once
