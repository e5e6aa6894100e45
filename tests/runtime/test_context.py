"""Does an `AdapterSetup` hold while the model's own set-up changes?"""

from __future__ import annotations

import torch

from adapters import AdapterSetup
from tests.tiny import build, infer, inputs, perturb


def test_the_models_set_up_changes_inside_a_context() -> None:
    model, given = build("bert"), inputs("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    perturb(model, "a", "b")
    model.set_active_adapters("b")
    expected = infer(model, given)
    model.set_active_adapters("a")
    with AdapterSetup("b"):
        model.set_active_adapters(None)
        assert torch.equal(infer(model, given), expected)
