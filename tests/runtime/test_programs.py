"""A call follows one program from its beginning to its end: under threads, tasks, generators, interrupts, surgery."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import AdapterSetup, Average, BatchSplit, Fuse, MultiTask, Parallel, Route, Split, Stack
from adapters.call import CALL
from adapters.errors import AdapterNameError, CompositionError, ConfigError, UnsupportedError
from tests.contract.cases import ONE_OF_EACH, carrying, every_pair
from tests.tiny import LENGTH, ROWS, build, checkpoint, hooks, infer, inputs, output, perturb

SETUPS: list[Any] = [
    "a",
    None,
    Stack("a", "b"),
    Fuse("a", "b"),
    Split("a", "b", splits=[2, LENGTH - 2]),
    BatchSplit("a", "b", batch_sizes=[1, ROWS - 1]),
    Parallel("a", "b"),
    Average("a", "b"),
    MultiTask("a", "b"),
    Route("a", "b", top_k=1),
    Route("b", None, by="sequence"),
]
"""A set-up of every block."""


def served(**changes: Any) -> tuple[Any, Any]:
    """A model with two adapters of a union of methods and what the blocks own, and inputs."""
    model = build("bert", **changes)
    for i, name in enumerate("ab"):
        model.add_adapter(name, config="seq_bn|lora")
        perturb(model, name, seed=i)
    model.add_adapter_fusion(["a", "b"])
    for block in SETUPS:
        if isinstance(block, Route):
            model.add_adapter_routing(block)
    return model, inputs("bert")


def asked(model: Any, given: Any, setup: Any) -> Tensor:
    """What the model computes under a set-up, without changing what is active."""
    extra = {"task_ids": torch.tensor([0, 1, 1, 0])} if isinstance(setup, MultiTask) else {}
    with AdapterSetup(setup):
        return infer(model, given, **extra)


# ----------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("calls", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_threads_compute_as_one_alone_while_others_change_the_model(calls: int) -> None:
    """Each thread has its own set-up of another block; adapters are added, replaced and deleted meanwhile."""
    model, given = served(num_hidden_layers=1)
    setups = SETUPS
    expected = [asked(model, given, setup) for setup in setups]
    stop, wrong = threading.Event(), []

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            model.add_adapter(f"other {number}", config=("lora", "seq_bn", "prefix_tuning")[number % 3])
            model.add_adapter("busy", config="seq_bn|lora", overwrite_ok=True)
            model.set_active_adapters("busy" if number % 2 else None)
            model.delete_adapter(f"other {number}")

    def serve(i: int) -> None:
        for _ in range(calls // len(setups)):
            if not torch.equal(asked(model, given, setups[i]), expected[i]):
                wrong.append(setups[i])

    with ThreadPoolExecutor(len(setups) + 1) as pool:
        changing = pool.submit(change)
        for serving in [pool.submit(serve, i) for i in range(len(setups))]:
            serving.result()
        stop.set()
        changing.result()
    assert not wrong
    model.set_active_adapters(None)
    for name in [*model.adapters_config]:
        model.delete_adapter(name)
    assert hooks(model) == []


def test_first_contexts_of_many_threads_register_each_hook_once() -> None:
    for _ in range(20):
        model, given = served(num_hidden_layers=1)
        expected = asked(copy.deepcopy(model), given, "a")
        barrier = threading.Barrier(4, timeout=20)

        def enter(model: Any = model, given: Any = given, barrier: Any = barrier) -> Tensor:
            barrier.wait()
            return asked(model, given, "a")

        with ThreadPoolExecutor(4) as pool:
            results = [pool.submit(enter) for _ in range(4)]
            assert all(torch.equal(result.result(), expected) for result in results)
        for hooked in model._engine.hooked:
            assert len(hooked.site.module._forward_hooks) <= 1
        for name in "ab":
            model.delete_adapter(name)
        assert hooks(model) == []


def test_merging_waits_for_the_calls_that_run() -> None:
    model, given = served(num_hidden_layers=1)
    alone, base = asked(model, given, "b"), asked(model, given, None)
    model.merge_adapter("a")
    merged = asked(model, given, "b"), asked(model, given, None)
    model.reset_adapter()
    stop, wrong = threading.Event(), []

    def serve(setup: Any, allowed: tuple[Tensor, ...]) -> None:
        while not stop.is_set():
            found = asked(model, given, setup)
            if not any(torch.equal(found, one) for one in allowed):
                wrong.append(setup)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(serve, "b", (alone, merged[0])), pool.submit(serve, None, (base, merged[1]))]
        for _ in range(20):
            model.merge_adapter("a")
            model.reset_adapter()
        stop.set()
        for one in running:
            one.result()
    assert not wrong and torch.equal(asked(model, given, None), base)


def in_the_middle(model: Any, action: Callable[[], Any]) -> None:
    """Do something once, when the first layer of a bert runs."""

    def act(*args: Any) -> None:
        handle.remove()
        action()

    handle = model.get_submodule("encoder.layer.0.attention").register_forward_hook(act)


@every_pair(methods=ONE_OF_EACH, names=("bert",))
@pytest.mark.parametrize("change", ["add", "overwrite", "delete", "activate"])
def test_a_running_call_keeps_what_it_began_with(method: str, name: str, change: str) -> None:
    model, given = carrying(name, method, "seq_bn"), inputs(name)
    perturb(model, "a", "b")
    model.set_active_adapters("a")
    expected, base = infer(model, given), asked(model, given, None)
    changes: dict[str, Callable[[], Any]] = {
        "add": lambda: model.add_adapter("c", config="lora", set_active=True),
        "overwrite": lambda: model.add_adapter("a", config="lora", overwrite_ok=True),
        "delete": lambda: model.delete_adapter("a"),
        "activate": lambda: model.set_active_adapters("b"),
    }

    def from_another_thread() -> None:
        thread = threading.Thread(target=changes[change])
        thread.start()
        thread.join()

    in_the_middle(model, from_another_thread)
    assert torch.equal(infer(model, given), expected)
    if change == "delete":
        assert torch.equal(infer(model, given), base)
        model.delete_adapter("b")
        assert hooks(model) == []


# -------------------------------------------------------------------------------------- contexts and their owners


def test_an_adapter_that_is_added_after_another_thread_entered_its_name_acts_there() -> None:
    model, given = served()
    with AdapterSetup("late"):
        thread = threading.Thread(target=lambda: model.add_adapter("late", config="seq_bn"))
        thread.start()
        thread.join()
        perturb(model, "late")
        found = infer(model, given)
    assert torch.equal(found, asked(model, given, "late"))
    assert not torch.allclose(found, infer(model, given))


@pytest.mark.parametrize("task", ["base", "classification"])
@pytest.mark.parametrize("ever", [False, True], ids=["never had one", "has none left"])
def test_a_model_without_adapters_refuses_what_names_one(task: str, ever: bool) -> None:
    model, given = build("bert", task), inputs("bert")
    expected = infer(model, given)
    if ever:
        model.add_adapter("a", config="lora")
        model.delete_adapter("a")
    for setup in ("a", Stack("a", "b"), Average("a", None)):
        with AdapterSetup(setup), pytest.raises(AdapterNameError, match="no adapter 'a' in this Bert"):
            infer(model, given)
    with pytest.raises(AdapterNameError, match=r"adapter_names has \['a'\]"):
        model(**given, adapter_names=["a", "a", "a", "__base__"])
    assert torch.equal(model(**given, adapter_names=[None, "__base__", None, None])[0], expected)
    for harmless in (AdapterSetup(None), AdapterSetup(None, ignore_empty=True)):
        with harmless:
            assert torch.equal(infer(model, given), expected)
    assert hooks(model) == []


def test_a_model_without_adapters_refuses_to_generate_with_one() -> None:
    model, given = build("llama", "lm"), inputs("llama", "lm")
    with AdapterSetup("a"), pytest.raises(AdapterNameError, match="no adapter 'a'"):
        model.generate(**given, max_new_tokens=2)


def test_a_name_that_the_model_lacks_is_an_error() -> None:
    model, given = served()
    expected = infer(model, given)
    with AdapterSetup("typo"), pytest.raises(AdapterNameError, match=r"no adapter 'typo'.*Allowed: a, b"):
        infer(model, given)
    with AdapterSetup("a"):
        model.delete_adapter("a")
        with pytest.raises(AdapterNameError, match="no adapter 'a'"):
            infer(model, given)
    assert torch.equal(infer(model, given), expected)


def test_tasks_do_not_see_each_others_context() -> None:
    model, given = served()
    of = {name: asked(model, given, name) for name in ("a", "b", None)}

    async def work(name: Any) -> None:
        assert torch.equal(infer(model, given), of[None])
        with AdapterSetup(name):
            for _ in range(4):
                await asyncio.sleep(0)
                assert torch.equal(infer(model, given), of[name])
                assert torch.equal(await asyncio.to_thread(infer, model, given), of[name])
        assert torch.equal(infer(model, given), of[None])

    async def main() -> None:
        await asyncio.gather(*(work(name) for name in ("a", "b", None, "a")))

    asyncio.run(main())
    assert AdapterSetup.get_context() is None


def test_a_task_made_inside_of_a_context_keeps_it() -> None:
    """Also after it was left where it was entered, and after hooks were swept away."""
    model, given = served()
    expected = asked(model, given, "a")

    async def main() -> Tensor:
        with AdapterSetup("a"):
            task = asyncio.create_task(asyncio.sleep(0, result=None))
            late = asyncio.get_running_loop().create_task(compute())
        model.set_active_adapters("b")
        model.set_active_adapters(None)
        await task
        return await late

    async def compute() -> Tensor:
        await asyncio.sleep(0)
        return infer(model, given)

    assert torch.equal(asyncio.run(main()), expected)


def test_generators_compute_under_their_own_context() -> None:
    model, given = served()
    of = {name: asked(model, given, name) for name in ("a", "b", None)}

    def stream(name: Any) -> Iterator[Tensor]:
        with AdapterSetup(name):
            for _ in range(3):
                yield infer(model, given)

    streams = {name: stream(name) for name in ("a", "b", None)}
    for order in (("a", "b", None), ("b", None, "a"), (None, "a", "b")):
        for name in order:
            assert torch.equal(next(streams[name]), of[name])
    with AdapterSetup("b"):
        assert torch.equal(next(stream("a")), of["a"])
        assert torch.equal(infer(model, given), of["b"])
    streams.pop("b").close()
    for name, one in streams.items():
        assert list(one) == [], name
    assert AdapterSetup.get_contexts() == []
    assert torch.equal(infer(model, given), of[None])


def test_a_context_manager_made_of_a_generator_enters_for_its_user() -> None:
    model, given = served()
    of_a, of_b = asked(model, given, "a"), asked(model, given, "b")

    @contextlib.contextmanager
    def language(name: str) -> Iterator[None]:
        with AdapterSetup(name):
            yield

    with AdapterSetup("b"), language("a"):
        assert torch.equal(infer(model, given), of_a)
    with contextlib.ExitStack() as stack:
        stack.enter_context(language("a"))
        stack.enter_context(AdapterSetup("b"))
        assert torch.equal(infer(model, given), of_b)


def test_contexts_are_left_by_whom_they_belong_to() -> None:
    outer, inner = AdapterSetup("a"), AdapterSetup("b")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert AdapterSetup.get_contexts() == [inner]
    inner.__exit__(None, None, None)
    assert AdapterSetup.get_contexts() == []


def test_an_executor_takes_a_copied_context_along() -> None:
    model, given = served()
    of_a, base = asked(model, given, "a"), infer(model, given)
    with AdapterSetup("a"), ThreadPoolExecutor(1) as pool:
        context = contextvars.copy_context()
        assert torch.equal(pool.submit(context.run, infer, model, given).result(), of_a)
        assert torch.equal(pool.submit(infer, model, given).result(), base)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_runs_under_the_set_up_of_its_forward(reentrant: bool) -> None:
    """On another thread, after its adapter was deleted and another activated; no hook stays behind."""
    model, given = served()
    model.train_adapter("a")
    output(model, given).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    parameters = dict(model.named_parameters())
    model.zero_grad()
    checkpoint(model, reentrant=reentrant)
    with AdapterSetup("a"):
        loss = output(model, given).sum()
    for name in "ab":
        model.delete_adapter(name)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert expected and [hook for hook in hooks(model) if "word_embeddings" not in hook] == []  # that one is torch's
    for name, grad in expected.items():
        torch.testing.assert_close(parameters[name].grad, grad)


# --------------------------------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize("task", ["base", "classification"])
@pytest.mark.parametrize("through", ["model", "base_model"])
def test_an_interrupt_leaves_nothing_behind(task: str, through: str) -> None:
    model, given = build("bert", task), inputs("bert", task)
    other, others = carrying("gpt2", "mam", "dora"), inputs("gpt2")
    for i, name in enumerate("ab"):
        model.add_adapter(name, config="mam")
        perturb(model, name, seed=i)
        perturb(other, name, seed=i)
    setup = Parallel("a", "b")
    for each in (model, other):
        each.set_active_adapters(setup)
    entrance = model if through == "model" else model.base_model
    expected, expected_other = infer(model, given), infer(other, others)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = model.base_model.get_submodule("encoder.layer.1").register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        entrance(**given)
    handle.remove()
    assert torch.equal(infer(other, others), expected_other)
    assert torch.equal(infer(model, given), expected)
    with torch.no_grad():
        assert len(model.base_model(**given).last_hidden_state) == 2 * ROWS
    assert CALL.now.root is None and not model._engine.programs.running


# ------------------------------------------------------------------------------------------------ changing nothing


def test_what_is_refused_changes_nothing() -> None:
    model, given = served()
    model.set_active_adapters("a")
    expected = infer(model, given)
    model.merge_adapter("b")
    merged = infer(model, given)
    for setup, error in (("typo", AdapterNameError), (Fuse("b", "a"), CompositionError)):
        with pytest.raises(error):
            model.set_active_adapters(setup)
    with pytest.raises(ConfigError, match=r"skip_layers has \[50\], but the layers of this model are 0-1"):
        model.set_active_adapters("b", skip_layers=[50])
    assert str(model.active_adapters) == "Stack[a]"
    assert torch.equal(infer(model, given), merged)
    model.reset_adapter()
    assert torch.equal(infer(model, given), expected)


def test_a_replaced_adapter_stays_active() -> None:
    model, given = served()
    model.set_active_adapters(Stack("a", "b"))
    before = infer(model, given)
    model.add_adapter("a", config="seq_bn|lora", overwrite_ok=True)
    perturb(model, "a", seed=7)
    assert str(model.active_adapters) == "Stack[a, b]"
    assert not torch.allclose(infer(model, given), before)
    with pytest.raises(ConfigError, match="takes part in the fusion 'a,b'"):
        model.add_adapter("a", config="lora", overwrite_ok=True)
    model.delete_adapter_fusion("a,b")
    model.add_adapter("a", config="lora", overwrite_ok=True)


# ------------------------------------------------------------------------------------------------- the module tree


def container(model: Any, layer: int = 0) -> Any:
    return model.encoder.layer[layer].output


def test_a_deleted_entry_acts_no_more() -> None:
    model, given = carrying("bert", "seq_bn", "seq_bn"), inputs("bert")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    model.set_active_adapters("a", skip_layers=[1])
    expected = infer(model, given)
    model.set_active_adapters("a")
    del container(model, 1).adapters["a"]
    assert torch.equal(infer(model, given), expected)
    model.delete_adapter("a")
    model.delete_adapter("b")
    assert hooks(model) == []


@pytest.mark.parametrize("how", ["item", "attribute", "update", "dictionary", "before activation"])
def test_another_module_acts_in_its_place(how: str) -> None:
    model, given = carrying("bert", "seq_bn", "seq_bn"), inputs("bert")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    expected = asked(model, given, "b")
    if how != "before activation":
        model.set_active_adapters("a")
        infer(model, given)
    for layer in range(2):
        place = container(model, layer)
        other = place.adapters["b"]
        if how == "attribute":
            place.adapters.a = other
        elif how == "update":
            place.adapters.update({"a": other})
        elif how == "dictionary":
            place.adapters = nn.ModuleDict({"a": other})
        else:
            place.adapters["a"] = other
    if how == "before activation":
        model.set_active_adapters("a")
    assert torch.equal(infer(model, given), expected)


def test_something_else_in_place_of_an_adapter_is_an_error_at_the_next_call() -> None:
    model, given = carrying("bert", "seq_bn"), inputs("bert")
    model.set_active_adapters("a")
    kept = container(model).adapters["a"]
    container(model).adapters["a"] = nn.Linear(2, 2)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"encoder\.layer\.0\.output\.adapters\.a is a Linear"):
            infer(model, given)
    container(model).adapters["a"] = kept
    assert infer(model, given).isfinite().all()


def test_a_swapped_fusion_acts() -> None:
    class Mean(nn.Module):
        def forward(self, query: Tensor, updates: Tensor, residual: Tensor) -> Tensor:
            return updates.mean(2) + residual

    model, given = carrying("bert", "double_seq_bn", "double_seq_bn"), inputs("bert")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    model.add_adapter_fusion(["a", "b"], set_active=True)
    infer(model, given)
    for layer in model.encoder.layer:
        for owner in (layer.output, layer.attention.output):
            owner.adapter_fusion_layer["a,b"] = Mean()
    assert torch.allclose(infer(model, given), asked(model, given, Average("a", "b")), atol=1e-5)


def test_edits_travel_with_copies() -> None:
    model, given = carrying("bert", "seq_bn"), inputs("bert")
    perturb(model, "a")
    model.set_active_adapters("a")
    expected, base = infer(model, given), asked(model, given, None)
    twin = copy.deepcopy(model)
    for layer in range(2):
        del container(twin, layer).adapters["a"]
    assert torch.equal(infer(twin, given), base)
    assert torch.equal(infer(model, given), expected)
