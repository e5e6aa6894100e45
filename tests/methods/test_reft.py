"""ReFT against s + (f(W s + b) - R s) R at the first and last attended positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import DiReftConfig, LoReftConfig, NoReftConfig, ReftConfig
from tests.methods.reference import adapted, close, weights
from tests.tiny import adapter_parameters, build, infer, inputs, output

LAYERS = {
    "bert": ("encoder.layer.1", "encoder.layer.1"),
    "gpt2": ("h.1", "h.1"),
    "llama": ("layers.1", "layers.1"),
    "vit": ("layers.1", "layers.1"),
    "bart": ("encoder.layers.1", "encoder.layers.1"),
}


def projection(w: dict[str, Tensor], unit: int, c: ReftConfig) -> Tensor:
    """R [r, D]. Orthonormal: base [D, D] times reflections I - t v v^T, one per row, v the row behind its diagonal."""
    if not c.orthogonality:
        return w[f"units.{unit}.projection.weight"]
    prefix = f"units.{unit}.projection.parametrizations.weight."
    x, base = w[f"{prefix}original"], w[f"{prefix}0.base"]
    product = torch.eye(x.shape[1])
    for i, row in enumerate(x):
        v = torch.cat([torch.zeros(i), torch.ones(1), row[i + 1 :]])
        product = product @ (torch.eye(len(v)) - 2 / (v @ v) * torch.outer(v, v))
    signs = torch.where(x.diagonal() < 0, -1.0, 1.0)
    return (base @ product[:, : len(x)] * signs).T


def edit(w: dict[str, Tensor], unit: int, c: ReftConfig, s: Tensor) -> Tensor:
    r = projection(w, unit, c)
    target = s @ w[f"units.{unit}.learned_source.weight"].T + w[f"units.{unit}.learned_source.bias"]
    if c.non_linearity:
        target = torch.tanh(target)
    if c.subtract_projection:
        target = target - s @ r.T
    return s + target @ r


def layer_output(model: Any, path: str, given: Any) -> Tensor:
    found: list[Tensor] = []

    def note(module: Any, args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = model.get_submodule(path).register_forward_hook(note)
    infer(model, given)
    handle.remove()
    return found[0]


CASES: dict[str, ReftConfig] = {
    "loreft": LoReftConfig(r=2, prefix_positions=2, suffix_positions=1),
    "noreft": NoReftConfig(r=2, prefix_positions=2, suffix_positions=1),
    "direft": DiReftConfig(r=2, prefix_positions=2, suffix_positions=1),
    "tied": NoReftConfig(r=2, prefix_positions=2, suffix_positions=2, tied_weights=True),
    "tanh": LoReftConfig(r=3, prefix_positions=1, suffix_positions=2, non_linearity="tanh"),
    "first only": LoReftConfig(prefix_positions=3),
    "last only": NoReftConfig(prefix_positions=0, suffix_positions=3),
    "overlapping": NoReftConfig(prefix_positions=5, suffix_positions=5),
    "longer than the sequence": NoReftConfig(prefix_positions=9, suffix_positions=0),
}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("c", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_edits(name: str, c: ReftConfig, padded: bool) -> None:
    path, owner = LAYERS[name]
    c = c.replace(layers=[1], dropout=0.0)
    model, given = adapted(name, c), inputs(name, padded=padded)
    found = layer_output(model, path, given)
    model.set_active_adapters(None)
    h = layer_output(model, path, given)
    w = weights(model, f"{owner}.reft_layer.refts")
    expected = h.clone()
    size = h.shape[1]
    for row in range(len(h)):
        mask = given["attention_mask"][row].bool() if "attention_mask" in given else torch.ones(size, dtype=torch.bool)
        first, count = int(mask.int().argmax()), int(mask.sum())
        n, m = min(c.prefix_positions, count), min(c.suffix_positions, count)
        last = first + count
        expected[row, first : first + n] = edit(w, 0, c, h[row, first : first + n])
        if m:
            unit = 0 if c.tied_weights else 1
            expected[row, last - m : last] = edit(w, unit, c, h[row, last - m : last])
    close(found, expected)


def test_rows_of_the_projection_are_orthonormal_whatever_its_parameters_are() -> None:
    model = adapted("bert", LoReftConfig(r=4))
    for unit in model.get_adapter("a")[0]["output_reft"].units:
        rows = unit.projection.weight
        close((rows @ rows.T).detach(), torch.eye(4))
    model.train_adapter("a")
    model(**inputs("bert")).last_hidden_state.pow(2).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    rows = model.get_adapter("a")[0]["output_reft"].units[0].projection.weight
    close((rows @ rows.T).detach(), torch.eye(4))


def test_weight_decay_does_not_end_the_edits() -> None:
    """What torch takes for signs is decayed like any other number, and must stay what it is."""
    model, given = adapted("bert", LoReftConfig(r=2, dropout=0.0)), inputs("bert")
    model.train_adapter("a")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        model(**given).last_hidden_state.pow(2).sum().backward()
        optimizer.step()
    rows = model.get_adapter("a")[0]["output_reft"].units[0].projection.weight
    close((rows @ rows.T).detach(), torch.eye(2))


def test_dropout_acts_on_whole_edited_states() -> None:
    model = adapted("bert", NoReftConfig(prefix_positions=3, dropout=0.5)).train()
    h = layer_output(model, "encoder.layer.1", inputs("bert", padded=False))
    assert 0.3 < (h[:, :3] == 0).float().mean() < 0.7
    assert (h[:, 3:] == 0).float().mean() == 0


@pytest.mark.parametrize(("layers", "expected"), [("all", {0, 1}), ([0], {0}), ([1], {1})])
def test_layers_are_chosen(layers: Any, expected: set[int]) -> None:
    model = build("bert")
    model.add_adapter("a", config=LoReftConfig(layers=layers))
    assert set(model.get_adapter("a")) == expected


def test_encoder_layers_come_first() -> None:
    model = build("t5")
    model.add_adapter("a", config=LoReftConfig(layers=[1, 2]))
    keys = [key for key in model.state_dict() if ".refts.a." in key]
    assert {key.split(".reft_layer")[0] for key in keys} == {"encoder.block.1", "decoder.block.0"}


@pytest.mark.parametrize("config", ["loreft", "noreft", "direft", "loreft[prefix_positions=0,suffix_positions=2]"])
def test_an_edit_without_positions_is_no_parameter(config: str) -> None:
    """It is written to files, but neither trained nor counted: all that trains gets a gradient."""
    model, given = build("bert"), inputs("bert")
    model.add_adapter("a", config=config)
    model.train_adapter("a")
    output(model, given).square().sum().backward()
    parameters = adapter_parameters(model, "a")
    assert parameters
    assert all(p.grad is not None for p in parameters.values())
    idle = "units.0" if "suffix_positions=2" in config else "units.1"
    assert not any(idle in name for name in parameters)
    assert sum(idle in name for name in model.state_dict()) > 0
    row = next(row for row in model.adapter_summary(as_dict=True) if row["name"] == "a")
    assert row["#param"] == sum(p.numel() for p in parameters.values())
