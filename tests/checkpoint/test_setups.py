"""Do fusions and whole compositions come back, with all that they name?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adapters
from adapters import Average, BatchSplit, Fuse, MultiTask, Parallel, Split, Stack
from adapters.checkpoint.layout import FUSION, SETUP_FILE
from adapters.errors import AdapterNameError, CheckpointError, CheckpointNotFound, CompositionError, HeadError
from tests.heads.models import add_head, tiny
from tests.tiny import adapter_parameters, build, infer, inputs, perturb


def carrying(*names: str, model: Any = None) -> Any:
    model = build("bert") if model is None else model
    for i, name in enumerate(names):
        torch.manual_seed(i)
        model.add_adapter(name, config="seq_bn[reduction_factor=4]")
        perturb(model, name, seed=i)
    return model


@pytest.mark.parametrize("config", ["dynamic", "static"])
@pytest.mark.parametrize("own_name", [None, "mine"])
def test_a_fusion(config: str, own_name: str | None, tmp_path: Path) -> None:
    model = carrying("a", "b")
    model.add_adapter_fusion(["a", "b"], config, name=own_name, set_active=True)
    name = own_name or "a,b"
    perturb(model, name)
    model.save_adapter_fusion(tmp_path, Fuse("a", "b", name=own_name), meta_dict={"note": 1})
    data = json.loads((tmp_path / FUSION.config).read_text())
    assert (data["name"], data["adapter_names"], data["note"]) == (name, ["a", "b"], 1)
    assert data["config"] == model.adapters_config.get_fusion(name)[0].to_dict()
    fresh = carrying("a", "b")
    info: dict[str, Any] = {}
    assert fresh.load_adapter_fusion(tmp_path, set_active=True, loading_info=info) == name
    assert info == {"missing_keys": [], "unexpected_keys": []}
    assert torch.equal(infer(fresh, inputs("bert")), infer(model, inputs("bert")))
    assert fresh.active_adapters == Fuse("a", "b", name=own_name)
    fresh.save_adapter_fusion(tmp_path / "again", name, use_safetensors=False)
    again = torch.load(tmp_path / "again" / FUSION.pickle, weights_only=True)
    assert all(torch.equal(tensor, again[key]) for key, tensor in load_file(tmp_path / FUSION.safetensors).items())


def test_a_fusion_under_another_name(tmp_path: Path) -> None:
    model = carrying("a", "b")
    model.add_adapter_fusion(["a", "b"])
    perturb(model, "a,b")
    model.save_adapter_fusion(tmp_path, ["a", "b"])
    fresh = carrying("a", "b")
    assert fresh.load_adapter_fusion(tmp_path, load_as="mine") == "mine"
    for (_, one), (_, other) in zip(
        adapter_parameters(fresh, "mine").items(), adapter_parameters(model, "a,b").items()
    ):
        assert torch.equal(one, other)


def test_old_fusions_name_their_adapters_only_in_their_name(tmp_path: Path) -> None:
    model = carrying("a", "b")
    model.add_adapter_fusion(["a", "b"])
    model.save_adapter_fusion(tmp_path, "a,b")
    data = json.loads((tmp_path / FUSION.config).read_text())
    del data["adapter_names"]
    (tmp_path / FUSION.config).write_text(json.dumps({**data, "config": "dynamic"}))
    assert carrying("a", "b").load_adapter_fusion(tmp_path) == "a,b"


def test_fusions_whose_names_begin_the_same(tmp_path: Path) -> None:
    model = carrying("a", "b", "c")
    for names in (["a", "b"], ["a", "b", "c"]):
        model.add_adapter_fusion(names)
    model.save_adapter_fusion(tmp_path, "a,b")
    tensors = load_file(tmp_path / FUSION.safetensors)
    assert all(".a,b." in key for key in tensors)
    save_file(
        {**tensors, **{k.replace(".a,b.", ".a,b,c."): t.clone() for k, t in tensors.items()}},
        tmp_path / FUSION.safetensors,
    )
    assert carrying("a", "b").load_adapter_fusion(tmp_path) == "a,b"
    model.save_all_adapter_fusions(tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["a,b", "a,b,c"]


def test_fusions_that_do_not_fit(tmp_path: Path) -> None:
    model = carrying("a", "b")
    model.add_adapter_fusion(["a", "b"])
    model.save_adapter_fusion(tmp_path, "a,b")
    with pytest.raises(AdapterNameError, match="'b'"):
        carrying("a").load_adapter_fusion(tmp_path)
    with pytest.raises(AdapterNameError, match="no fusion"):
        model.save_adapter_fusion(tmp_path, "b,a")
    with pytest.raises(CheckpointNotFound):
        model.load_adapter_fusion(tmp_path / "none")
    tensors = load_file(tmp_path / FUSION.safetensors)
    key = next(iter(tensors))
    del tensors[key]
    save_file(tensors, tmp_path / FUSION.safetensors)
    fresh = carrying("a", "b")
    before = sorted(fresh.state_dict())
    with pytest.raises(CheckpointError, match=f"missing: {key}"):
        fresh.load_adapter_fusion(tmp_path)
    assert sorted(fresh.state_dict()) == before
    assert not fresh.adapters_config.fusions
    assert fresh.load_adapter_fusion(tmp_path, strict=False) == "a,b"


def test_a_fusion_with_a_head(tmp_path: Path) -> None:
    model = carrying("a", "b", model=tiny("bert"))
    model.add_adapter_fusion(["a", "b"], name="f")
    for name in ("f", "g"):
        add_head(model, "classification", name)
    for with_head, source in ((True, "f"), ("g", "g")):
        model.save_adapter_fusion(tmp_path / source, "f", with_head=with_head)
        fresh = carrying("a", "b", model=tiny("bert"))
        fresh.load_adapter_fusion(tmp_path / source, set_active=True)
        assert torch.equal(fresh.heads[source][1].weight, model.heads[source][1].weight)
        assert fresh.active_head == source
    fresh = carrying("a", "b", model=tiny("bert"))
    fresh.load_adapter_fusion(tmp_path / "f", with_head=False)
    assert not fresh.heads


SETUPS: dict[str, Any] = {
    "name": "a",
    "stack": Stack("a", "b"),
    "batch split": BatchSplit("a", "b", batch_sizes=[1, 3]),
    "split": Split("a", "b", splits=[3, 4]),
    "parallel": Parallel("a", Stack("b", "c")),
    "average": Average("a", "b", weights=[1, 3], normalize_weights=False),
    "multi-task": MultiTask("a", "b"),
    "fuse": Fuse("a", "b"),
    "stack of fuse": Stack("a", Fuse("b", "c", name="mine")),
    "fuse in multi-task": MultiTask("a", Fuse("b", "c")),
}


@pytest.mark.parametrize("name", SETUPS)
def test_every_block(name: str, tmp_path: Path) -> None:
    setup, model = SETUPS[name], carrying("a", "b", "c")
    if "fuse" in name:
        fused = ["a", "b"] if name == "fuse" else ["b", "c"]
        model.add_adapter_fusion(fused, name="mine" if "stack" in name else None)
    model.save_adapter_setup(tmp_path, setup, meta_dict={"note": 1})
    data = json.loads((tmp_path / SETUP_FILE).read_text())
    assert data["head_setup"] is None and data["note"] == 1
    fresh = build("bert")
    found, heads = fresh.load_adapter_setup(tmp_path, set_active=True)
    assert (found, heads) == (setup, None)
    assert repr(found) == repr(setup)
    used = {"a"} if name == "name" else setup.flatten()
    assert set(fresh.adapters_config) == used
    if "multi-task" not in name:
        model.set_active_adapters(setup)
        assert torch.equal(infer(fresh, inputs("bert")), infer(model, inputs("bert")))


@pytest.mark.parametrize(
    "heads", [None, "a", ["a", "b"], BatchSplit("a", "b", batch_sizes=2)], ids=["none", "one", "list", "split"]
)
def test_heads_of_a_setup(heads: Any, tmp_path: Path) -> None:
    model = carrying("a", "b", model=tiny("bert"))
    for name in "ab":
        add_head(model, "classification", name)
    model.save_adapter_setup(tmp_path, BatchSplit("a", "b", batch_sizes=2), head_setup=heads)
    fresh = tiny("bert")
    _, found = fresh.load_adapter_setup(tmp_path)
    assert found == heads and fresh.active_head is None
    assert sorted(fresh.heads) == sorted([] if heads is None else [heads] if isinstance(heads, str) else list(heads))
    again = tiny("bert")
    again.load_adapter_setup(tmp_path, set_active=True)
    assert again.active_head == heads


def test_the_head_of_a_plain_class(tmp_path: Path) -> None:
    model = carrying("a", model=build("bert", "classification"))
    model.save_adapter_setup(tmp_path, "a", head_setup=True)
    fresh = build("bert", "classification")
    with torch.no_grad():
        fresh.classifier.weight.zero_()
    assert fresh.load_adapter_setup(tmp_path) == ("a", True)
    assert torch.equal(fresh.classifier.weight, model.classifier.weight)


def test_nothing_is_left_of_a_setup_that_does_not_fit(tmp_path: Path) -> None:
    model = carrying("a", "b", model=tiny("bert"))
    model.add_adapter_fusion(["a", "b"])
    add_head(model, "classification", "h")
    model.save_adapter_setup(tmp_path, Fuse("a", "b"), head_setup="h")
    fresh = carrying("c", model=tiny("bert"))
    before = sorted(fresh.state_dict())
    for folder in ("b", "a,b", "h"):
        file = next(path for path in (tmp_path / folder).iterdir() if path.suffix == ".safetensors")
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        with pytest.raises(CheckpointError):
            fresh.load_adapter_setup(tmp_path, set_active=True)
        assert sorted(fresh.state_dict()) == before
        assert list(fresh.adapters_config) == ["c"] and not fresh.heads and not fresh.adapters_config.fusions
        file.write_bytes(content)
    fresh.load_adapter_setup(tmp_path)


def test_setups_that_cannot_be_saved(tmp_path: Path) -> None:
    model = carrying("a", "b")
    for setup, error in (
        (Stack("a", "x"), AdapterNameError),
        (Fuse("a", "b"), CompositionError),
        (None, CompositionError),
    ):
        with pytest.raises(error):
            model.save_adapter_setup(tmp_path / "x", setup)
    with pytest.raises(HeadError, match="'h'"):
        model.save_adapter_setup(tmp_path / "x", "a", head_setup="h")
    assert not (tmp_path / "x").exists()
    for content in ("{}", '{"adapter_setup": {"type": "Knot", "children": []}}'):
        (tmp_path / SETUP_FILE).write_text(content)
        with pytest.raises(ValueError):
            model.load_adapter_setup(tmp_path)


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    carrying("a").save_adapter(tmp_path, "a")
    for name in ("../..", str(tmp_path)):
        data = {"adapter_setup": {"type": "single", "children": [name]}, "head_setup": None}
        (folder / SETUP_FILE).write_text(json.dumps(data))
        with pytest.raises(AdapterNameError, match="folder"):
            build("bert").load_adapter_setup(folder)


def test_public_names() -> None:
    for name in ("load_adapter_fusion", "save_adapter_setup", "load_adapter_setup", "save_all_adapter_fusions"):
        assert callable(getattr(adapters.AdapterModelMixin, name))


def test_fusions_of_version_1_have_layers_at_bottlenecks_only(tmp_path: Path) -> None:
    """Version 1 fused nothing else: its files of unions hold no more, and no layer is made up."""
    model = build("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn|lora")
    model.add_adapter_fusion(["a", "b"])
    model.save_adapter_fusion(tmp_path, "a,b")
    tensors = load_file(tmp_path / FUSION.safetensors)
    kept = {key: tensor for key, tensor in tensors.items() if "attention" not in key}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, tmp_path / FUSION.safetensors)
    model.delete_adapter_fusion("a,b")
    with pytest.raises(CheckpointError, match="missing"):
        model.load_adapter_fusion(tmp_path)
    data = json.loads((tmp_path / FUSION.config).read_text())
    (tmp_path / FUSION.config).write_text(json.dumps({**data, "version": "adapters.1.2.0"}))
    model.load_adapter_fusion(tmp_path)
    assert len(adapter_parameters(model, "a,b")) == len(kept)
    with pytest.raises(CompositionError, match=r"no fusion layer 'a,b' at attn.q of layer 0"):
        model.set_active_adapters(Fuse("a", "b"))


def test_a_fusion_of_updates_in_a_whole_model(tmp_path: Path) -> None:
    model, given = build("bert"), inputs("bert")
    for i, name in enumerate("ab"):
        model.add_adapter(name, config="seq_bn|lora")
        perturb(model, name, seed=i)
    model.add_adapter_fusion(["a", "b"], set_active=True)
    perturb(model, "a,b")
    model.save_pretrained(tmp_path)
    opened = adapters.load_model(tmp_path, type(model)).eval()
    opened.set_active_adapters(Fuse("a", "b"))
    assert torch.equal(infer(opened, given), infer(model, given))
