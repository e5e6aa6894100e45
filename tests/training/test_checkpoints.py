"""What do the stock Trainers keep of a model with adapters, and does it come back to the bit?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)

import adapters
from adapters import AdapterTrainer, AutoAdapterModel, Route, Stack
from adapters.errors import CheckpointError, CheckpointNotFound
from tests.contract.cases import CONFIGS
from tests.tiny import build, config, infer, inputs, perturb
from tests.training.test_adapter_trainer import (
    ADAPTER,
    FUSION,
    HEAD,
    STATE,
    TRAINER,
    files_below,
    fused,
    several,
    with_embeddings,
)
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

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def routed() -> Any:
    """A plain class that trains two adapters and the gates between them."""
    model = build("bert", "classification")
    torch.manual_seed(0)
    for name in "ab":
        model.add_adapter(name, config="lora")
    gates = Route("a", "b", name="gates")
    model.add_adapter_routing(gates)
    model.train_adapter_routing(gates)
    return model


def with_batch_norm() -> Any:
    """A plain class whose frozen base model counts means and variances."""
    model = trained()
    model.bert.pooler.activation = torch.nn.BatchNorm1d(model.config.hidden_size).requires_grad_(False)
    return model


ROUTING = {"adapter_routing_config.json", "model_adapter_routing.safetensors"}
HOLDING = [
    (trained, {".": TRAINER, "a": ADAPTER | HEAD}),
    (with_embeddings, {".": TRAINER | {"other_weights.safetensors"}, "a": ADAPTER | HEAD}),
    (with_batch_norm, {".": TRAINER | {"other_weights.safetensors"}, "a": ADAPTER | HEAD}),
    (fused, {".": TRAINER, "a": ADAPTER | HEAD, "b": ADAPTER | HEAD, "a,b": FUSION}),
    (routed, {".": TRAINER, "a": ADAPTER | HEAD, "b": ADAPTER | HEAD, "gates": ROUTING}),
    (flexible, {".": TRAINER, "a": ADAPTER | HEAD}),
    (several, {".": TRAINER, "a": ADAPTER | HEAD, "b": ADAPTER, "c": ADAPTER, "tags": HEAD, "both": FUSION}),
]


class AtStep(TrainerCallback):
    """Remembers the model after a step."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, {}

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.seen = snapshot(model)


@pytest.mark.parametrize(("make", "folders"), HOLDING)
def test_what_a_checkpoint_holds_and_what_comes_back(make: Any, folders: Any, tmp_path: Path) -> None:
    data, scores, early = marked_sentences(), iter([3.0, 2.0]), AtStep(2)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    evaluating = {"eval_strategy": "steps", "eval_steps": 2, "compute_metrics": lambda _: {"score": next(scores)}}
    metrics = evaluating.pop("compute_metrics")
    args = arguments(tmp_path, **SAVING, **evaluating, **best)
    model = make()
    late, options = AtStep(4), {"train_dataset": data, "eval_dataset": data, "compute_metrics": metrics}
    Trainer(model, args, callbacks=[early, late], **options).train()
    assert files_below(tmp_path / "checkpoint-2") == folders
    assert changed(late.seen, model), "it went on training after the best step"
    assert not changed(early.seen, model), "the best one is back"
    again, checkpoint = arguments(tmp_path, save_steps=2, max_steps=4), str(tmp_path / "checkpoint-2")
    resumed, other = make(), make()
    Trainer(resumed, again, train_dataset=data).train(resume_from_checkpoint=checkpoint)
    assert not changed(late.seen, resumed)
    AdapterTrainer(other, again)._load_from_checkpoint(checkpoint)
    assert not changed(early.seen, other)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_is_written_and_read(name: str, tmp_path: Path) -> None:
    model = trained(method=CONFIGS[name])
    perturb(model, "a")
    before = snapshot(model)
    trainer = Trainer(model, arguments(tmp_path))
    trainer.save_model()
    perturb(model, "a", seed=1)
    assert changed(before, model)
    trainer._load_from_checkpoint(str(tmp_path))
    assert not changed(before, model)
    files = {path for path in tmp_path.rglob("*") if path.is_file() and path.name not in {*STATE, "training_args.bin"}}
    model.save_adapter(tmp_path / "alone" / "a", "a")
    alone = sum(path.stat().st_size for path in (tmp_path / "alone" / "a").iterdir())
    assert sum(path.stat().st_size for path in files) <= 1.05 * alone


def test_the_adapter_of_a_checkpoint_is_loaded_alone(tmp_path: Path) -> None:
    model, given = trained(), inputs("bert")
    trainer = Trainer(model, arguments(tmp_path, **SAVING), train_dataset=marked_sentences())
    trainer.train()
    other = build("bert", "classification")
    other.load_adapter(tmp_path / "checkpoint-4" / "a", set_active=True)
    assert torch.equal(infer(other, given), infer(model.eval(), given))


def test_generating_trainers_keep_what_trains_too(tmp_path: Path) -> None:
    whole, part, data = flexible_t5(), flexible_t5(), repeated_words()
    args = arguments(tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True, **SAVING)
    Seq2SeqTrainer(whole, args, train_dataset=data).train()
    assert files_below(tmp_path / "checkpoint-2") == {".": TRAINER, "a": ADAPTER | HEAD}
    Seq2SeqTrainer(part, args, train_dataset=data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not changed(snapshot(whole), part)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_model_gets_its_values(tmp_path: Path) -> None:
    model, other = trained(), trained()
    perturb(model, "a")
    Trainer(torch.compile(model), arguments(tmp_path)).save_model()
    assert files_below(tmp_path) == {".": TRAINER - STATE, "a": ADAPTER | HEAD}
    assert changed(snapshot(model), other)
    Trainer(torch.compile(other), arguments(tmp_path))._load_from_checkpoint(str(tmp_path))
    assert not changed(snapshot(model), other)


# -------------------------------------------------------------------------------------------------- the full model


def test_the_full_model_on_request(tmp_path: Path) -> None:
    model, data = trained(), marked_sentences()
    model.full_checkpoints = True
    Trainer(model, arguments(tmp_path, **SAVING), train_dataset=data).train()
    assert "config.json" in files_below(tmp_path / "checkpoint-4")["."]
    opened = adapters.load_model(tmp_path / "checkpoint-4", type(model))
    assert not changed(snapshot(model), opened)
    part = trained()
    args = arguments(tmp_path, save_steps=2, max_steps=4)
    Trainer(part, args, train_dataset=data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not changed(snapshot(model), part)


def test_a_base_model_that_trains_is_kept(tmp_path: Path) -> None:
    model = build("bert", "classification")
    model.add_adapter("a", config="lora", set_active=True)
    Trainer(model, arguments(tmp_path, **SAVING), train_dataset=marked_sentences()).train()
    opened = adapters.load_model(tmp_path / "checkpoint-4", type(model))
    assert not changed(snapshot(model), opened)


def test_a_model_without_adapters_is_kept(tmp_path: Path) -> None:
    model = build("bert", "classification")
    model.freeze_model()
    Trainer(model, arguments(tmp_path)).save_model()
    assert not changed(snapshot(model), transformers.BertForSequenceClassification.from_pretrained(tmp_path))


def test_merged_weights_are_kept(tmp_path: Path) -> None:
    model = trained()
    model.add_adapter("below", config="lora")
    perturb(model, "below")
    model.merge_adapter("below")
    Trainer(model, arguments(tmp_path)).save_model()
    assert not changed(snapshot(model), adapters.load_model(tmp_path, type(model)))


def test_a_person_gets_the_whole_model_at_any_time(tmp_path: Path) -> None:
    class Keep(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.save_pretrained(tmp_path / "whole")

    model = trained()
    args = arguments(tmp_path / "out", save_strategy="steps", save_steps=2, max_steps=2)
    Trainer(model, args, train_dataset=marked_sentences(), callbacks=[Keep()]).train()
    assert not changed(snapshot(model), adapters.load_model(tmp_path / "whole", type(model)))


def test_no_part_of_an_earlier_full_model_stays(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "mine.txt").touch()
    Trainer(model, arguments(tmp_path)).save_model()
    assert files_below(tmp_path) == {".": {*(TRAINER - STATE), "mine.txt"}, "a": ADAPTER | HEAD}
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoAdapterModel.from_pretrained(tmp_path)


def test_the_base_model_itself_is_not_replaced(tmp_path: Path) -> None:
    build("bert", "classification", adapted=False).save_pretrained(tmp_path)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    adapters.init(model)
    model.add_adapter("a", config="lora")
    model.train_adapter("a")
    Trainer(model, arguments(tmp_path)).save_model()
    assert not changed(snapshot(model), adapters.load_model(tmp_path, type(model)))


# --------------------------------------------------------------------------------------------------- quantised bases

QUANTISED = [
    *(pytest.param("nf4", method) for method in ("lora", "seq_bn", "prefix_tuning", "ia3")),
    pytest.param("int8", "lora"),
]


@pytest.mark.parametrize(("packing", "method"), QUANTISED)
def test_adapters_on_quantised_bases_train(packing: str, method: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    build("llama", "lm", adapted=False).save_pretrained(tmp_path / "base")
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    options = BitsAndBytesConfig(**(nf4 if packing == "nf4" else {"load_in_8bit": True}))

    def make() -> Any:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=options)
        adapters.init(model)
        torch.manual_seed(0)
        model.add_adapter("a", config=method)
        model.train_adapter("a")
        return model

    whole, part, data = make(), make(), any_examples("llama")
    before = snapshot(whole)
    Trainer(whole, arguments(tmp_path, **SAVING), train_dataset=data).train()
    assert (names := changed(before, whole)) and all(".a." in name for name in names)
    assert files_below(tmp_path / "checkpoint-2") == {".": TRAINER, "a": ADAPTER}
    args = arguments(tmp_path, save_steps=2, max_steps=4)
    Trainer(part, args, train_dataset=data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not changed(snapshot(whole), part)


# ------------------------------------------------------------------------------------------------------------ errors


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    model = several()
    trainer = Trainer(model, arguments(tmp_path))
    trainer.save_model()
    perturb(model, "a")
    before = snapshot(model)

    def refused(error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            trainer._load_from_checkpoint(str(tmp_path))
        assert not changed(before, model)

    file = tmp_path / "b" / "adapter_config.json"
    text = file.read_text(encoding="utf-8")
    other = json.loads(text)
    other["config"] = config_of("seq_bn")
    file.write_text(json.dumps(other), encoding="utf-8")
    refused(CheckpointError, "another config")
    file.write_text(text, encoding="utf-8")
    (tmp_path / "tags" / "model_head.safetensors").write_bytes(b"damaged")
    refused(CheckpointError, "not a readable safetensors file")
    shutil.rmtree(tmp_path / "both")
    shutil.rmtree(tmp_path / "tags")
    refused(CheckpointNotFound, "no folder for .* of this model. It has: a, b, c")


def config_of(method: str) -> Any:
    model = trained(method=method)
    return model.adapters_config.get("a").to_dict()


def test_a_checkpoint_of_another_set_of_adapters(tmp_path: Path) -> None:
    Trainer(trained(), arguments(tmp_path)).save_model()
    model = build("bert", "classification")
    torch.manual_seed(0)
    for name in "xy":
        model.add_adapter(name, config="lora")
    model.train_adapter(Stack("x", "y"))
    before = snapshot(model)
    with pytest.raises(CheckpointNotFound, match="no folder for adapter 'x'"):
        Trainer(model, arguments(tmp_path))._load_from_checkpoint(str(tmp_path))
    assert not changed(before, model)


def test_other_models_are_no_concern_of_a_trainer(tmp_path: Path) -> None:
    """A Trainer whose own `_save` writes another model too, such as a teacher."""

    teacher = trained("bert", "seq_bn")

    class Distilling(Trainer):
        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
            super()._save(output_dir, state_dict)
            teacher.save_pretrained(Path(output_dir or self.args.output_dir, "teacher"))

    Distilling(trained(), arguments(tmp_path)).save_model()
    assert "config.json" in files_below(tmp_path)["teacher"]
    assert not changed(snapshot(teacher), adapters.load_model(tmp_path / "teacher", type(teacher)))
    assert config("bert").model_type == teacher.config.model_type
