"""Does an `AdapterSetup` hold while the model's own set-up changes?"""

from __future__ import annotations

import threading

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


def test_another_threads_context_keeps_its_hooks() -> None:
    model, given = build("bert"), inputs("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    perturb(model, "a", "b")
    model.set_active_adapters("a")
    expected = infer(model, given)
    entered, changed, got = threading.Event(), threading.Event(), []

    def serve() -> None:
        with AdapterSetup("a"):
            entered.set()
            assert changed.wait(10)
            got.append(infer(model, given))

    thread = threading.Thread(target=serve)
    thread.start()
    assert entered.wait(10)
    model.set_active_adapters("b")
    model.set_active_adapters(None)
    changed.set()
    thread.join()
    assert torch.equal(got[0], expected)
    model.set_active_adapters(None)
    assert not any(hooked.handles for hooked in model._engine.hooked)
