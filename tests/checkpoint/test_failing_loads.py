"""Does a load that fails leave the model as it was, to the bit, with an error of ours, whatever is wrong?"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters import Fuse, Stack
from adapters.checkpoint.layout import ADAPTER, FUSION, HEAD
from adapters.errors import AdapterError, CheckpointError
from tests.contract.cases import CONFIGS, ONE_OF_EACH, carrying
from tests.heads.models import add_head, tiny
from tests.tiny import build, hooks, perturb


def snapshot(model: Any) -> dict[str, Any]:
    """All that loading could change in a model."""
    heads = getattr(model, "heads", {})
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "trains": [name for name, p in model.named_parameters() if p.requires_grad],
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "heads": [(name, id(head)) for name, head in heads.items()],
        "head configs": json.dumps(getattr(model.config, "prediction_heads", None)),
        "labels": (model.config.id2label, model.config.label2id),
        "active": (repr(model.active_adapters), getattr(model, "active_head", None), model.adapters_config.skip_layers),
        "register": model.adapters_config.to_dict(),
        "merged": list(model._engine.merged),
        "hooks": hooks(model),
        "random": torch.random.get_rng_state(),
    }


def assert_same(before: dict[str, Any], model: Any, what: str) -> None:
    after = snapshot(model)
    one, other = before.pop("tensors"), after.pop("tensors")
    assert one.keys() == other.keys(), what
    for name in one:
        assert torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)), f"{what}: {name}"
    assert torch.equal(before.pop("random"), after.pop("random")), what
    assert before == after, what


# Anything may be wrong

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 10**7, 10**9, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "0.5", "lora", "a.b", "../x", "\ud800", "x" * 9999),
    *([], ["q"], [0], [None], [10**30], {}, {"a": 1}, {"0": 2}),
]


def somewhere(data: Any, chance: random.Random) -> tuple[Any, Any]:
    """A container inside of JSON data, and one of its keys."""
    container, key = None, None
    while isinstance(data, dict | list) and data and (container is None or chance.random() < 0.7):
        container = data
        key = chance.choice(list(data)) if isinstance(data, dict) else chance.randrange(len(data))
        data = data[key]
    return container, key


def mutate_json(path: Path, chance: random.Random) -> str:
    data = json.loads(path.read_text())
    container, key = somewhere(data, chance)
    if isinstance(container, dict) and chance.random() < 0.2:
        del container[key]
        what = f"without {key}"
    else:
        container[key] = chance.choice(VALUES)
        what = f"{key} = {str(container[key])[:40]}"
    if chance.random() < 0.1 and isinstance(container, dict):
        container["more"] = chance.choice(VALUES)
    path.write_text(json.dumps(data), encoding="utf-8", errors="ignore")
    return f"{path.name}: {what}"


ODD: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "integers": lambda t: t.to(torch.int64),
    "other shape": lambda t: t[..., :-1].clone(),
    "one more dimension": lambda t: t[None].clone(),
    "empty": lambda t: t.new_zeros(0),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "number": lambda t: 3.0,
    "dict": lambda t: {"a": t},
    "nothing": lambda t: None,
}


def mutate_tensors(path: Path, chance: random.Random) -> str:
    is_pickle = path.suffix == ".bin"
    tensors: dict[Any, Any] = torch.load(path, weights_only=True) if is_pickle else load_file(path)
    key = chance.choice(sorted(tensors))
    what = chance.choice(["drop", "rename", "twice", "bytes", "short", *ODD])
    if what == "drop":
        del tensors[key]
    elif what == "rename":
        tensors[key.replace("layer.0", "layer.7").replace("bert.", "x.")] = tensors.pop(key)
    elif what == "twice":
        tensors[key.removeprefix("bert.") if key.startswith("bert.") else f"bert.{key}"] = tensors[key] + 1
    elif what in ODD:
        tensors[key] = ODD[what](tensors[key])
        if not is_pickle and what in ("sparse", "nested", "quantised", "meta", "number", "dict", "nothing"):
            path.write_bytes(b"")
            return f"{path.name}: empty file"
    if is_pickle:
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    if what in ("bytes", "short"):
        data = bytearray(path.read_bytes())
        place = chance.randrange(min(len(data), 600))
        data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data if what == "bytes" else data[:place])
    return f"{path.name}: {what} {key}"


def mutate(folder: Path, chance: random.Random) -> str:
    """Break one or two files of a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    chosen = chance.sample(files, chance.choice([1, 1, 1, 2]))
    return " and ".join((mutate_json if path.suffix == ".json" else mutate_tensors)(path, chance) for path in chosen)


def model_with_all(seed: int) -> Any:
    torch.manual_seed(seed)
    model = tiny("bert")
    for name in "abz":
        model.add_adapter(name, config="seq_bn[reduction_factor=8]" if name != "z" else "lora[r=2]")
        add_head(model, "classification", name)
    model.add_adapter_fusion(["a", "b"])
    perturb(model, "a", "b", "z", "a,b", seed=seed)
    model.set_active_adapters(Stack("z", "b"))
    model.active_head = "b"
    return model


def empty_model() -> Any:
    model = tiny("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn[reduction_factor=8]")
    return model


SAVED: dict[str, Callable[[Any, Path, bool], None]] = {
    "adapter": lambda model, folder, safe: model.save_adapter(folder, "a", use_safetensors=safe),
    "lora": lambda model, folder, safe: model.save_adapter(folder, "z", use_safetensors=safe),
    "head": lambda model, folder, safe: model.save_head(folder, "a", use_safetensors=safe),
    "fusion": lambda model, folder, safe: model.save_adapter_fusion(folder, "a,b", None, None, safe, with_head="a"),
    "setup": lambda model, folder, safe: model.save_adapter_setup(folder, Fuse("a", "b"), ["a"], use_safetensors=safe),
}
LOADED: dict[str, Callable[[Any, Path], Any]] = {
    "adapter": lambda model, folder: model.load_adapter(folder, set_active=True),
    "lora": lambda model, folder: model.load_adapter(folder, set_active=True),
    "head": lambda model, folder: model.load_head(folder),
    "fusion": lambda model, folder: model.load_adapter_fusion(folder, set_active=True),
    "setup": lambda model, folder: model.load_adapter_setup(folder, set_active=True),
}


def fuzz(kind: str, rounds: int, seed: int, folder: Path) -> int:
    """Load mutated files into models that have all of it and nothing of it; how many loads failed."""
    chance, failed = random.Random(seed), 0
    source = model_with_all(1)
    for form, safe in (("safe", True), ("pickle", False)):
        SAVED[kind](source, folder / form, safe)
    models: list[Any] = []
    for number in range(rounds):
        broken = folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder / chance.choice(["safe", "pickle"]), broken)
        what = f"round {number}: {mutate(broken, chance)}"
        models = models or [model_with_all(2), empty_model()]
        for model in models:
            before, started = snapshot(model), time.process_time()
            try:
                LOADED[kind](model, broken)
            except AdapterError:
                assert_same(before, model, what)
                failed += 1
            except Exception as error:
                raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
            else:
                models = []
            assert time.process_time() - started < 5, f"{what} took long"
    return failed


@pytest.mark.filterwarnings("ignore")  # of torch, about the odd tensors
@pytest.mark.parametrize("kind", SAVED)
def test_mutated_files(kind: str, tmp_path: Path) -> None:
    assert fuzz(kind, 25, 0, tmp_path) > 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", SAVED)
def test_many_mutated_files(kind: str, seed: int, tmp_path: Path) -> None:
    assert fuzz(kind, 150, seed, tmp_path) > 50


# What was once wrong


def changed(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def refused(model: Any, load: Callable[[], Any], match: str | None = None) -> None:
    before = snapshot(model)
    with pytest.raises(AdapterError, match=match):
        load()
    assert_same(before, model, str(match))


def test_a_bad_head_leaves_the_adapter(tmp_path: Path) -> None:
    model_with_all(1).save_adapter(tmp_path, "a")
    tensors = load_file(tmp_path / HEAD.safetensors)
    save_file(dict(list(tensors.items())[1:]), tmp_path / HEAD.safetensors)
    model = model_with_all(2)
    refused(model, lambda: model.load_adapter(tmp_path), "missing: heads|missing: ")


def test_a_loader_that_fails_leaves_the_adapter(tmp_path: Path) -> None:
    class Loader:
        def load(self, folder: str, load_as: str, loading_info: Any) -> None:
            raise CheckpointError("no more")

    model_with_all(1).save_adapter(tmp_path, "a")
    for model in (model_with_all(2), tiny("bert")):
        refused(model, lambda model=model: model.load_adapter(tmp_path, custom_weights_loaders=[Loader()]), "no more")


def test_a_fusion_of_other_adapters(tmp_path: Path) -> None:
    source = model_with_all(1)
    source.save_adapter_fusion(tmp_path, "a,b")
    changed(tmp_path / FUSION.config, adapter_names=["a", "z"])
    model = model_with_all(2)
    refused(model, lambda: model.load_adapter_fusion(tmp_path), "combines a, z")
    changed(tmp_path / FUSION.config, adapter_names=["b", "a"], config="static")
    refused(model, lambda: model.load_adapter_fusion(tmp_path), "another config")


def test_a_merged_adapter_stays_merged(tmp_path: Path) -> None:
    model = carrying("bert", "lora")
    perturb(model, "a")
    model.save_adapter(tmp_path, "a")
    model.merge_adapter("a")
    changed(tmp_path / ADAPTER.config, config={**CONFIGS["lora"].to_dict(), "r": 2})
    refused(model, lambda: model.load_adapter(tmp_path), "another config")


HUGE: dict[str, list[dict[str, Any]]] = {
    "lora": [{"r": 10**7}, {"r": 10**30}, {"alpha": float("inf")}, {"alpha": float("nan")}, {"dropout": float("nan")}],
    "seq_bn": [{"reduction_factor": 1e-7}, {"init_weights_seed": 10**30}, {"scaling": float("inf")}],
    "prefix_tuning": [{"prefix_length": 10**7}, {"bottleneck_size": 10**9}, {"prefix_length": 10**30}],
    "prompt_tuning": [{"prompt_length": 10**9}, {"prompt_length": 10**30}],
    "vera": [{"r": 10**7}],
    "loreft": [{"r": 10**6}],
    "compacter": [{"phm_dim": 10**7}, {"phm_rank": 10**9}],
    "mtl_lora": [{"n_up_projection": 10**9}],
}


@pytest.mark.parametrize(("method", "change"), [(method, change) for method in HUGE for change in HUGE[method]])
def test_sizes_are_checked_before_anything_is_made(method: str, change: dict[str, Any], tmp_path: Path) -> None:
    source = carrying("bert", method)
    source.save_adapter(tmp_path, "a")
    changed(tmp_path / ADAPTER.config, config={**CONFIGS[method].to_dict(), **change})
    model = build("bert")
    refused(model, lambda: model.load_adapter(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        *({"num_labels": value} for value in (10**7, 10**30, "3", 0, None, 2.5, True)),
        *({"layers": value} for value in (10**9, "2", 0)),
        *({"dropout_prob": value} for value in (float("nan"), 2, "x")),
        {"label2id": {"a": "x"}},
        {"label2id": [1]},
        {"activation_function": 3},
        {"use_pooler": "yes"},
        {"head_type": "none"},
        {"head_type": 3},
    ],
)
def test_values_of_heads(change: dict[str, Any], tmp_path: Path) -> None:
    source = model_with_all(1)
    source.save_head(tmp_path, "a")
    changed(tmp_path / HEAD.config, config={**source.heads["a"].config, **change})
    model = model_with_all(2)
    refused(model, lambda: model.load_head(tmp_path))


# Two names of one tensor


@pytest.mark.parametrize("method", ONE_OF_EACH)
def test_two_names_of_one_tensor(method: str, tmp_path: Path) -> None:
    source = tiny("bert")
    source.add_adapter("a", config=CONFIGS[method])
    source.save_adapter(tmp_path, "a")
    tensors = load_file(tmp_path / ADAPTER.safetensors)
    for key in list(tensors)[:3]:
        other = key.removeprefix("bert.")
        save_file({**tensors, other: tensors[key] + 1}, tmp_path / ADAPTER.safetensors)
        for model in (tiny("bert"), build("bert")):
            before = snapshot(model)
            with pytest.raises(CheckpointError) as caught:
                model.load_adapter(tmp_path)
            assert key in str(caught.value) and f" {other}" in str(caught.value)
            assert_same(before, model, key)
        save_file({**tensors, other: tensors[key].clone()}, tmp_path / ADAPTER.safetensors)
        assert tiny("bert").load_adapter(tmp_path) == "a"


def test_an_old_container_beside_the_new_one(tmp_path: Path) -> None:
    carrying("bert", "seq_bn").save_adapter(tmp_path, "a")
    tensors = load_file(tmp_path / ADAPTER.safetensors)
    key = next(iter(tensors))
    tensors[key.replace(".adapters.", ".layer_text_task_adapters.")] = tensors[key] + 1
    save_file(tensors, tmp_path / ADAPTER.safetensors)
    model = build("bert")
    refused(model, lambda: model.load_adapter(tmp_path), "two names of one tensor")


def test_two_names_in_a_head(tmp_path: Path) -> None:
    model_with_all(1).save_head(tmp_path, "a")
    tensors = load_file(tmp_path / HEAD.safetensors)
    key = next(iter(tensors))
    save_file({**tensors, key.removeprefix("heads.a."): tensors[key] + 1}, tmp_path / HEAD.safetensors)
    model = model_with_all(2)
    refused(model, lambda: model.load_head(tmp_path), "two names of one tensor")


def test_the_norm_that_has_two_names(tmp_path: Path) -> None:
    config = "seq_bn[reduction_factor=8,ln_before=True]"
    source = build("bert")
    source.add_adapter("a", config=config)
    source.save_adapter(tmp_path, "a", use_safetensors=False)
    assert build("bert").load_adapter(tmp_path) == "a"
    tensors = torch.load(tmp_path / ADAPTER.pickle, weights_only=True)
    key = next(key for key in tensors if ".adapter_norm_before." in key)
    torch.save({**tensors, key: tensors[key] + 1}, tmp_path / ADAPTER.pickle)
    model = build("bert")
    refused(model, lambda: model.load_adapter(tmp_path), "two names of one tensor")
