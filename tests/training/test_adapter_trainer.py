"""Does AdapterTrainer keep adapters in small folders, resume from them, and train fusions as it should?"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

from adapters import (
    AdapterTrainer,
    BertAdapterModel,
    Fuse,
    MTLLoRAConfig,
    MultiTask,
    Parallel,
    Seq2SeqAdapterTrainer,
    Stack,
)
from adapters.errors import CheckpointError, CheckpointNotFound, CompositionError, UnsupportedError
from tests.contract.cases import CONFIGS
from tests.tiny import LABELS, build, config, infer, inputs, perturb
from tests.training.test_stock_trainer import train_with_best_in_the_middle
from tests.training.toy import (
    any_examples,
    arguments,
    changed,
    flexible,
    flexible_t5,
    marked_sentences,
    repeated_words,
    snapshot,
    trained,
)

pytestmark = pytest.mark.versions

SAVING = {"save_strategy": "steps", "save_steps": 4}


def fused(config: Any = "dynamic", **changes: Any) -> Any:
    """A plain class that trains a fusion of two adapters."""
    model = build("bert", "classification", **changes)
    torch.manual_seed(0)
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    model.add_adapter_fusion(Fuse("a", "b"), config=config)
    model.train_adapter_fusion(Fuse("a", "b"))
    return model


def with_embeddings() -> Any:
    model = trained()
    model.train_adapter("a", train_embeddings=True)
    return model


def several() -> Any:
    """A flexible model with two adapters, two heads and a fusion that has a name of its own."""
    model = flexible("seq_bn")
    model.add_adapter("b", config=CONFIGS["mam"])
    model.add_adapter("c", config="seq_bn")
    model.add_tagging_head("tags", num_labels=4)
    model.add_adapter_fusion(["a", "c"], name="both")
    model.active_head = "a"
    model.train_adapter(Stack("a", "b"))
    return model


def files_below(folder: Path) -> dict[str, set[str]]:
    """Folder -> names of the files in it."""
    found = {str(path.relative_to(folder)): path for path in (folder, *folder.rglob("*")) if path.is_dir()}
    return {name: {entry.name for entry in path.iterdir() if entry.is_file()} for name, path in found.items()}


ADAPTER = {"adapter_config.json", "adapter.safetensors"}
HEAD = {"head_config.json", "model_head.safetensors"}
FUSION = {"adapter_fusion_config.json", "model_adapter_fusion.safetensors"}
STATE = {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
TRAINER = {"model.safetensors", "training_args.bin", *STATE}


@pytest.mark.parametrize(
    ("make", "folders"),
    [
        (trained, {".": TRAINER, "a": ADAPTER | HEAD}),
        (with_embeddings, {".": TRAINER | {"other_weights.safetensors"}, "a": ADAPTER | HEAD}),
        (fused, {".": TRAINER, "a": ADAPTER | HEAD, "b": ADAPTER | HEAD, "a,b": FUSION}),
        (flexible, {".": TRAINER, "a": ADAPTER | HEAD}),
        (several, {".": TRAINER, "a": ADAPTER | HEAD, "b": ADAPTER, "c": ADAPTER, "tags": HEAD, "both": FUSION}),
    ],
)
def test_what_a_checkpoint_holds_and_that_it_resumes(make: Any, folders: Any, tmp_path: Path) -> None:
    whole, part, data = make(), make(), marked_sentences()
    AdapterTrainer(whole, arguments(tmp_path, **SAVING), train_dataset=data).train()
    assert files_below(tmp_path / "checkpoint-4") == folders
    trainer = AdapterTrainer(part, arguments(tmp_path, save_steps=4), train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not changed(snapshot(whole), part)


@pytest.mark.parametrize("name", ["llama", "t5", "bart", "vit"])
@pytest.mark.parametrize("method", ["mam", "compacter", "loreft"])
def test_other_architectures_resume(method: str, name: str, tmp_path: Path) -> None:
    whole, part, data = (*(trained(name, CONFIGS[method]) for _ in range(2)), any_examples(name))
    AdapterTrainer(whole, arguments(tmp_path, **SAVING), train_dataset=data).train()
    trainer = AdapterTrainer(part, arguments(tmp_path, save_steps=4), train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not changed(snapshot(whole), part)


def test_resuming_finds_the_last_checkpoint(tmp_path: Path) -> None:
    model, data = trained(), marked_sentences()
    AdapterTrainer(model, arguments(tmp_path, **SAVING), train_dataset=data).train()
    again = trained()
    AdapterTrainer(again, arguments(tmp_path, save_steps=4), train_dataset=data).train(resume_from_checkpoint=True)
    assert not changed(snapshot(model), again)


def test_a_checkpoint_of_the_stock_trainer_is_taken_too(tmp_path: Path) -> None:
    whole, part, data = trained(), trained(), marked_sentences()
    Trainer(whole, arguments(tmp_path, **SAVING), train_dataset=data).train()
    trainer = AdapterTrainer(part, arguments(tmp_path, save_steps=4), train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not changed(snapshot(whole), part)


def test_a_checkpoint_of_an_earlier_version_is_taken(tmp_path: Path) -> None:
    model, other = trained(), trained()
    perturb(model, "a")
    AdapterTrainer(model, arguments(tmp_path)).save_model()
    (tmp_path / "model.safetensors").unlink()
    assert changed(snapshot(model), other)
    AdapterTrainer(other, arguments(tmp_path))._load_from_checkpoint(str(tmp_path))
    assert not changed(snapshot(model), other)


@pytest.mark.parametrize("make", [trained, with_embeddings, fused, flexible, several])
def test_the_best_model_is_loaded(make: Any, tmp_path: Path) -> None:
    model = make()
    best = train_with_best_in_the_middle(AdapterTrainer, model, marked_sentences(), tmp_path)
    assert not changed(best, model)


def test_folders_load_into_a_fresh_model(tmp_path: Path) -> None:
    model = trained()
    trainer = AdapterTrainer(model, arguments(tmp_path), train_dataset=marked_sentences())
    trainer.train()
    trainer.save_model()
    fresh = build("bert", "classification")
    assert fresh.load_adapter(tmp_path / "a", set_active=True) == "a"
    given = inputs("bert")
    assert torch.equal(infer(fresh, given), infer(model.eval(), given))


def test_folders_are_small(tmp_path: Path) -> None:
    model = trained(method="lora[r=1]", vocab_size=2000)
    trainer = AdapterTrainer(model, arguments(tmp_path))
    trainer.save_model()
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert size < 0.1 * sum(p.numel() * p.element_size() for p in model.parameters())


def test_a_tokenizer_is_saved_with_it(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: str) -> None:
            Path(folder, "vocabulary").write_text("a b c")

    trainer = AdapterTrainer(trained(), arguments(tmp_path), tokenizer=Tokenizer())
    trainer.save_model()
    assert (tmp_path / "vocabulary").exists()


def test_embeddings_that_no_longer_train_leave_no_file(tmp_path: Path) -> None:
    model = with_embeddings()
    trainer = AdapterTrainer(model, arguments(tmp_path))
    trainer.save_model()
    assert "word_embeddings" in str(list(load_file(tmp_path / "other_weights.safetensors")))
    model.train_adapter("a")
    trainer.save_model()
    assert not (tmp_path / "other_weights.safetensors").exists()


# -------------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("method", ["seq_bn", "lora", "prefix_tuning", "mam"])
def test_loss_falls_and_only_adapter_and_head_change(method: str, tmp_path: Path) -> None:
    model, data = flexible(CONFIGS[method]), marked_sentences()
    trainer = AdapterTrainer(model, arguments(tmp_path, max_steps=60), train_dataset=data, eval_dataset=data)
    before, start = snapshot(model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * start
    assert all(".a." in name for name in changed(before, model))


def test_a_fusion_trains_alone(tmp_path: Path) -> None:
    model, data = fused(), marked_sentences()
    before = snapshot(model)
    AdapterTrainer(model, arguments(tmp_path), train_dataset=data).train()
    names = changed(before, model)
    assert any(".a,b.value." in name for name in names)
    assert all(".a,b." in name or name.startswith("classifier.") for name in names)


def test_several_heads_train_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = BertAdapterModel(config("bert")), marked_sentences()
    for name in "ab":
        model.add_adapter(name, config="lora")
        model.add_classification_head(name, num_labels=LABELS)
    model.train_adapter(Parallel("a", "b"))
    trainer = AdapterTrainer(model, arguments(tmp_path, max_steps=60), train_dataset=data, eval_dataset=data)
    assert trainer.label_names == ["labels"]
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * start


@pytest.mark.parametrize("kind", ["plain", "flexible"])
def test_tasks_of_rows_reach_the_model(kind: str, tmp_path: Path) -> None:
    model = build("bert", "classification") if kind == "plain" else BertAdapterModel(config("bert"))
    torch.manual_seed(0)
    for name in "ab":
        model.add_adapter(name, config=MTLLoRAConfig(r=4))
    model.train_adapter(MultiTask("a", "b"))
    if kind == "flexible":
        model.add_classification_head("both", num_labels=LABELS)
    data = [{**row, "task_ids": torch.tensor(i % 2)} for i, row in enumerate(marked_sentences())]
    trainer = AdapterTrainer(model, arguments(tmp_path, max_steps=60), train_dataset=data, eval_dataset=data)
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * start


class Gradients(TrainerCallback):
    """Remembers the gradients of the first step."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.first:
            self.first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def first_gradients(cls: type[Any], folder: Path, make: Any = fused, **changes: Any) -> dict[str, Tensor]:
    seen, options = Gradients(), {"max_steps": 1, "max_grad_norm": 0.0, **changes}
    loss_func = options.pop("compute_loss_func", None)
    args = arguments(folder, **options)
    data = marked_sentences()
    trainer = cls(make(), args, train_dataset=data, callbacks=[seen], compute_loss_func=loss_func)
    trainer.train()
    return seen.first


def summed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    loss = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return loss / num_items_in_batch


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 3, "compute_loss_func": summed_loss},
        {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
    ],
)
def test_regularisation_is_added_once_per_step(changes: Any, tmp_path: Path) -> None:
    """0.01 * ||I - W||^2 has the gradient 0.02 * (W - I)."""
    ours = first_gradients(AdapterTrainer, tmp_path, lambda: shifted(fused()), **changes)
    theirs = first_gradients(Trainer, tmp_path, lambda: shifted(fused()), **changes)
    assert ours.keys() == theirs.keys()
    values = {name for name in ours if name.endswith("a,b.value.weight")}
    assert values
    start = shifted(fused()).state_dict()
    for name, gradient in ours.items():
        expected = theirs[name]
        if name in values:
            expected = expected + 0.02 * (start[name] - torch.eye(len(start[name])))
        assert torch.allclose(gradient, expected, atol=1e-7), name


def shifted(model: Any) -> Any:
    """`model` with value matrices that are far from the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("value.weight") and "fusion" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def test_evaluation_is_without_regularisation(tmp_path: Path) -> None:
    data, model = marked_sentences(), shifted(fused())
    ours = AdapterTrainer(model, arguments(tmp_path), eval_dataset=data).evaluate()["eval_loss"]
    assert ours == Trainer(model, arguments(tmp_path), eval_dataset=data).evaluate()["eval_loss"]


def test_value_matrices_do_not_decay(tmp_path: Path) -> None:
    model = fused()
    trainer = AdapterTrainer(model, arguments(tmp_path, weight_decay=0.1), train_dataset=marked_sentences())
    decaying = set(trainer.get_decay_parameter_names(model))
    assert set(Trainer(model, arguments(tmp_path)).get_decay_parameter_names(model)) - decaying == {
        name for name, _ in model.named_parameters() if name.endswith("a,b.value.weight")
    }
    assert any(name.endswith("a,b.key.weight") for name in decaying)
    groups = trainer.create_optimizer().param_groups
    values = {id(p) for name, p in model.named_parameters() if name.endswith("a,b.value.weight")}
    assert values <= {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}


def test_static_fusions_have_nothing_to_regularise(tmp_path: Path) -> None:
    model = fused("static")
    AdapterTrainer(model, arguments(tmp_path), train_dataset=marked_sentences()).train()


# --------------------------------------------------------------------------------------------------------- set-ups


def test_a_set_up_is_activated(tmp_path: Path) -> None:
    model = several()
    AdapterTrainer(model, arguments(tmp_path), adapter_names=Stack("b", "a"))
    assert model.active_adapters == Stack("b", "a")


def test_a_model_that_is_made_for_every_run(tmp_path: Path) -> None:
    def make() -> Any:
        model = trained()
        model.set_active_adapters(None)
        return model

    data = marked_sentences()
    trainer = AdapterTrainer(
        model_init=make, args=arguments(tmp_path, max_steps=60), train_dataset=data, adapter_names="a"
    )
    trainer.train()
    assert str(trainer.model.active_adapters) == "Stack[a]"
    assert trainer.evaluate(data)["eval_loss"] < 0.8


@pytest.mark.parametrize(
    ("add", "names"),
    [
        ("add_classification_head", ["labels"]),
        ("add_qa_head", ["start_positions", "end_positions"]),
        ("add_dependency_parsing_head", ["labels_arcs", "labels_rels"]),
    ],
)
def test_labels_of_the_active_head(add: str, names: list[str], tmp_path: Path) -> None:
    model = BertAdapterModel(config("bert"))
    model.add_adapter("a", config="lora")
    getattr(model, add)("a")
    model.train_adapter("a")
    trainer = AdapterTrainer(model, arguments(tmp_path))
    assert sorted(trainer.label_names) == sorted(names)
    assert AdapterTrainer(model, arguments(tmp_path, label_names=["mine"])).label_names == ["mine"]


def test_question_answering_is_evaluated(tmp_path: Path) -> None:
    model = BertAdapterModel(config("bert"))
    model.add_adapter("a", config="lora")
    model.add_qa_head("a")
    model.train_adapter("a")
    data = [
        {"input_ids": row["input_ids"], "start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}
        for row in marked_sentences()
    ]
    trainer = AdapterTrainer(model, arguments(tmp_path), train_dataset=data, eval_dataset=data)
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start


def test_generation_during_evaluation(tmp_path: Path) -> None:
    model, data = flexible_t5(), repeated_words()
    args = arguments(tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True, generation_max_length=4, **SAVING)
    trainer = Seq2SeqAdapterTrainer(model, args, train_dataset=data, eval_dataset=data)
    assert isinstance(trainer, Seq2SeqTrainer)
    trainer.train()
    predicted = trainer.predict(data).predictions[:, :4]
    ids = torch.stack([row["input_ids"] for row in data])
    expected = model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_length=4)
    assert predicted.tolist() == expected.tolist()
    assert files_below(tmp_path / "checkpoint-4")["a"] == ADAPTER | HEAD


# ---------------------------------------------------------------------------------------------------------- errors


def test_models_without_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"adapters\.init\(model\)"):
        AdapterTrainer(build("bert", "classification", adapted=False), arguments(tmp_path))


def test_models_sharded_by_fsdp1_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sharded(AdapterTrainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            self.is_fsdp_enabled = True
            monkeypatch.setattr(self.accelerator.state, "fsdp_plugin", SimpleNamespace(fsdp_version=1), raising=False)

    with pytest.raises(UnsupportedError, match=r"FSDP1 shards\. Use FSDP2"):
        Sharded(trained(), arguments(tmp_path))


def test_an_active_set_up_is_needed(tmp_path: Path) -> None:
    model = build("bert", "classification")
    model.add_adapter("a")
    with pytest.raises(ValueError, match="needs an active set-up") as caught:
        AdapterTrainer(model, arguments(tmp_path))
    assert isinstance(caught.value, CompositionError)
    with pytest.raises(ValueError, match="There is no adapter 'b'"):
        AdapterTrainer(model, arguments(tmp_path), adapter_names="b")


def test_a_frozen_base_is_needed_when_training_starts(tmp_path: Path) -> None:
    model = build("bert", "classification")
    model.add_adapter("a", set_active=True)
    trainer = AdapterTrainer(model, arguments(tmp_path), train_dataset=marked_sentences())
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"such as .*embeddings.*train_adapter\('a'\)"):
        trainer.train()
    assert not changed(before, model)
    model.freeze_model()
    trainer.train()
    assert changed(before, model)


def test_a_base_that_was_frozen_by_hand_is_accepted(tmp_path: Path) -> None:
    model = build("bert", "classification")
    model.bert.requires_grad_(False)
    model.add_adapter("a", set_active=True)
    AdapterTrainer(model, arguments(tmp_path), train_dataset=marked_sentences()).train()


def saved(folder: Path, make: Any = several) -> tuple[Any, Path]:
    """A trained model, and the checkpoint of an earlier step."""
    model = make()
    AdapterTrainer(model, arguments(folder, **SAVING), train_dataset=marked_sentences()).train()
    return model, folder / "checkpoint-4"


def resume(model: Any, checkpoint: Path) -> None:
    trainer = AdapterTrainer(model, arguments(checkpoint.parent, save_steps=4), train_dataset=marked_sentences())
    trainer.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("part", ["a", "b", "tags", "both"])
def test_a_folder_that_is_missing(part: str, tmp_path: Path) -> None:
    model, checkpoint = saved(tmp_path)
    shutil.rmtree(checkpoint / part)
    before = snapshot(model)
    with pytest.raises(CheckpointNotFound, match=rf"no folder for .* '{part}' of this model\. It has: .*"):
        resume(model, checkpoint)
    assert not changed(before, model)


@pytest.mark.parametrize("file", ["b/adapter.safetensors", "tags/model_head.safetensors"])
def test_a_tensor_that_is_missing(file: str, tmp_path: Path) -> None:
    model, checkpoint = saved(tmp_path)
    tensors = load_file(checkpoint / file)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, checkpoint / file)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=f"missing: .*{name.rpartition('.')[2]}"):
        resume(model, checkpoint)
    assert not changed(before, model)


def test_an_adapter_of_another_config(tmp_path: Path) -> None:
    _, checkpoint = saved(tmp_path, trained)
    other = trained(method="lora[alpha=32]")
    before = snapshot(other)
    with pytest.raises(CheckpointError, match="another config"):
        resume(other, checkpoint)
    assert not changed(before, other)


def test_embeddings_that_were_not_trained_before(tmp_path: Path) -> None:
    _, checkpoint = saved(tmp_path, trained)
    with pytest.raises(CheckpointError, match=r"(?s)other_weights.*missing: .*word_embeddings"):
        resume(with_embeddings(), checkpoint)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="There is no checkpoint"):
        resume(trained(), tmp_path / "checkpoint-4")


def test_the_trainer_says_whether_a_fusion_trains(tmp_path: Path) -> None:
    model = build("bert", "classification")
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    model.add_adapter_fusion("a,b")
    model.train_adapter("a")
    assert not AdapterTrainer(model=model, args=arguments(tmp_path)).train_adapter_fusion
    model.train_adapter_fusion(Fuse("a", "b"))
    assert AdapterTrainer(model=model, args=arguments(tmp_path)).train_adapter_fusion
