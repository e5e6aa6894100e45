"""Do TRL's trainers train adapters, without a config of PEFT, and need no second model as their reference?"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import adapters
from adapters import AutoAdapterModel, Stack
from adapters.errors import AdapterNameError, CompositionError, MergeError, UnsupportedError
from tests.contract.cases import CONFIGS, refusal
from tests.tiny import VOCAB, adapter_parameters, build, infer, inputs, perturb
from tests.training.toy import arguments, changed, snapshot

pytestmark = pytest.mark.slow

METHODS = ("lora", "seq_bn", "prefix_tuning", "prompt_tuning", "ia3", "loreft")
STEPS = 4
GUIDE = Path(__file__).parents[2] / "docs" / "trl.md"


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL, which takes long to import."""
    return pytest.importorskip("trl")


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL tells its makers of every trainer, but for those of tests."""
    monkeypatch.setenv("CI", "1")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Words w0, w1, ... that are tokens of the tiny models, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "<pad>", "</s>", "<unk>", "<user>", "<assistant>", *(f"w{i}" for i in range(VOCAB - 6))]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    made.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<assistant> "
        "{% generation %}{{ m.content }} </s> {% endgeneration %}{% else %}<user> {{ m.content }} {% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    return made


def rows(kind: str, count: int = 8) -> Any:
    """A data set of short texts: "completions", "pairs" or "chats"."""
    from datasets import Dataset

    texts = [(f"w{i % 7} w{i % 5}" + " w3" * (i % 3), f" w{i % 7} w{i % 7} w1") for i in range(count)]
    if kind == "completions":
        return Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in texts])
    if kind == "pairs":
        return Dataset.from_list([{"prompt": p, "chosen": answer, "rejected": " w9 w8"} for p, answer in texts])
    turns = [({"role": "user", "content": p}, {"role": "assistant", "content": a.strip()}) for p, a in texts]
    return Dataset.from_list([{"messages": list(turn)} for turn in turns])


def options(cls: type[Any], folder: Path, **changes: Any) -> Any:
    """Quiet arguments in single precision, for a few steps on whole batches."""
    fixed = {"max_steps": STEPS, "bf16": False, "per_device_eval_batch_size": 8, "remove_unused_columns": False}
    if "max_length" in cls.__dataclass_fields__:
        fixed["max_length"] = 32
    return arguments(folder, cls, **{**fixed, "logging_strategy": "steps", "logging_steps": 1, **changes})


def plain_in(folder: Path, name: str = "llama", task: str = "causal lm", **changes: Any) -> Any:
    """A plain model that knows the folder from which TRL can load it once more."""
    build(name, task, adapted=False, **changes).save_pretrained(folder / "base")
    return getattr(transformers, AUTO[task]).from_pretrained(folder / "base")


AUTO = {"causal lm": "AutoModelForCausalLM", "classification": "AutoModelForSequenceClassification"}


def training(model: Any, *methods: Any) -> Any:
    """`model` with an adapter "a" that trains, by default a LoRA; of two methods a stack of "a" and "b"."""
    torch.manual_seed(0)
    adapters.init(model)
    names = "ab"[: max(len(methods), 1)]
    for name, config in zip(names, methods or ("lora",)):
        model.add_adapter(name, config=config)
    model.train_adapter(Stack(*names))
    return model


def history(trainer: Any, *keys: str) -> list[float]:
    """What a trainer has logged of the loss and of other values."""
    return [entry[key] for entry in trainer.state.log_history for key in ("loss", *keys) if "loss" in entry]


def others(names: set[str], *adapters: str) -> set[str]:
    """The tensors that belong to none of the adapters."""
    return {name for name in names if not any(f".{adapter}." in name for adapter in adapters)}


# ------------------------------------------------------------------------------------------------------------------ SFT


@pytest.mark.parametrize("methods", [*((name,) for name in METHODS), ("lora", "seq_bn")], ids="+".join)
def test_sft_trains_adapters_alone(methods: tuple[str, ...], trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, data = training(build("llama", "lm"), *(CONFIGS[name] for name in methods)), rows("completions")
    perturb(model, *model.adapters_config, scale=0.1)
    trainer = trl.SFTTrainer(
        model, options(trl.SFTConfig, tmp_path), train_dataset=data, eval_dataset=data, processing_class=tokenizer
    )
    start = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        batch = trainer.data_collator(list(trainer.eval_dataset))
        assert start == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5), "the loss of the model itself"
    before = snapshot(model)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start
    names = changed(before, model)
    assert names
    assert not others(names, "a", "b")


def test_the_loss_of_sft_is_that_of_peft(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, theirs = with_the_same_in_peft(tmp_path)
    trainers = [
        trl.SFTTrainer(
            each, options(trl.SFTConfig, tmp_path), train_dataset=rows("completions"), processing_class=tokenizer
        )
        for each in (model, theirs)
    ]
    for trainer in trainers:
        trainer.train()
    ours, peft = (history(trainer, "entropy", "mean_token_accuracy") for trainer in trainers)
    assert len(ours) == 3 * STEPS
    assert ours == pytest.approx(peft, rel=1e-5)


def with_the_same_in_peft(folder: Path) -> tuple[Any, Any]:
    """A model with a LoRA, and a model of PEFT with the same one."""
    peft = pytest.importorskip("peft")
    model = training(build("llama", "lm"), adapters.LoRAConfig(r=4, alpha=8, attn_matrices=["q", "v"]))
    model.save_adapter(folder / "peft", "a", format="peft")
    return model, peft.PeftModel.from_pretrained(
        build("llama", "lm", adapted=False), folder / "peft", is_trainable=True
    )


@pytest.mark.parametrize("changes", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
def test_packed_rows_cost_what_padded_ones_do(
    changes: dict[str, Any], trl: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model, data = training(build("llama", "lm"), CONFIGS["mam"]), rows("completions")
    perturb(model, "a")
    losses = [
        trl.SFTTrainer(
            model,
            options(trl.SFTConfig, tmp_path, **given),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer,
        ).evaluate()["eval_loss"]
        for given in ({}, changes)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", ["llama"])
@pytest.mark.parametrize("method", CONFIGS)
def test_packed_rows_equal_separate_ones_or_are_refused(method: str, name: str) -> None:
    if (why := refusal(method, name)) is not None:
        pytest.skip(why)
    model = build(name, "lm")
    model.add_adapter("a", config=CONFIGS[method])
    perturb(model, "a")
    model.set_active_adapters("a")
    parts = [torch.arange(3, 8)[None], torch.arange(9, 16)[None]]
    numbers = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    packed = {"input_ids": torch.cat(parts, 1), "position_ids": numbers, "use_cache": False}
    if method in ACROSS_A_ROW:
        with pytest.raises(UnsupportedError, match="several sequences"):
            infer(model, packed)
        model.set_active_adapters(None)
    expected = torch.cat([infer(model, {"input_ids": part}) for part in parts], 1)
    torch.testing.assert_close(infer(model, packed), expected, atol=1e-5, rtol=1e-4)


ACROSS_A_ROW = {"prompt_tuning", "loreft", "noreft", "direft", "loreft_ends", "unipelt"}
"""What looks at the ends of a row, or at all of it."""


def test_loss_of_answers_alone_in_chats(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, data = training(build("qwen2", "lm")), rows("chats")
    given = options(trl.SFTConfig, tmp_path, assistant_only_loss=True, bf16=True)
    trainer = trl.SFTTrainer(model, given, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    labels = trainer.data_collator([trainer.train_dataset[0]])["labels"][0]
    assert tokenizer.decode(labels[labels != -100]) == "w0 w0 w1 </s>"
    before, start = snapshot(model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start
    assert changed(before, model)
    assert not others(changed(before, model), "a")


def test_a_flexible_model_trains_with_its_causal_head(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    plain, data = plain_in(tmp_path), rows("completions")
    losses = []
    for model in (plain, AutoAdapterModel.from_pretrained(tmp_path / "base")):
        training(model)
        trainer = trl.SFTTrainer(
            model, options(trl.SFTConfig, tmp_path), train_dataset=data, eval_dataset=data, processing_class=tokenizer
        )
        before = snapshot(model)
        trainer.train()
        assert not others(changed(before, model), "a")
        losses.append([*history(trainer), trainer.evaluate()["eval_loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_what_the_loss_would_pass_over_is_refused(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    plain_in(tmp_path)
    invertible = training(AutoAdapterModel.from_pretrained(tmp_path / "base"), CONFIGS["seq_bn_inv"])
    flexible = AutoAdapterModel.from_config(build("llama").config)
    flexible.add_causal_lm_head("deep", layers=2)
    flexible.add_classification_head("classes")
    training(flexible)
    for each, head, message in (
        (invertible, None, r"invertible adapter \(a\)"),
        (flexible, "deep", "head 'deep'"),
        (flexible, "classes", "active is 'classes'"),
    ):
        if head is not None:
            each.active_head = head
        trainer = trl.SFTTrainer(
            each, options(trl.SFTConfig, tmp_path), train_dataset=rows("completions"), processing_class=tokenizer
        )
        with pytest.raises(UnsupportedError, match=message):
            trainer.train()


# ------------------------------------------------------------------------------------------------------------ reference


@pytest.mark.parametrize("method", ["lora", "seq_bn_inv", "mam", "prompt_tuning", "loreft", "unipelt"])
def test_the_reference_is_the_base_model(method: str) -> None:
    plain, given = build("llama", "lm", adapted=False), inputs("llama", "lm")
    model = training(build("llama", "lm"), CONFIGS[method])
    perturb(model, "a")
    reference, expected = adapters.reference_model(model), plain(**given).logits
    assert not torch.allclose(infer(model, given), expected)
    found = reference(**given).logits
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert model.training and model.active_adapters == Stack("a")
    assert not list(reference.parameters()) and not list(reference.children())
    assert reference.to(torch.bfloat16).eval().train()(**given).logits.dtype == torch.float32


def test_the_reference_has_no_dropout_and_leaves_modes_alone() -> None:
    model = training(build("gpt2", "lm", resid_pdrop=0.5, attn_pdrop=0.5), "seq_bn")
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    given = inputs("gpt2", "lm")
    with torch.no_grad():
        expected = build("gpt2", "lm", adapted=False)(**given).logits
    assert torch.equal(adapters.reference_model(model)(**given).logits, expected)
    assert [module.training for module in model.modules()] == modes


def test_an_earlier_adapter_is_the_reference() -> None:
    model, given = training(build("llama", "lm")), inputs("llama", "lm")
    perturb(model, "a")
    expected = infer(model.eval(), given)
    model.add_adapter("b", config="seq_bn")
    perturb(model, "b")
    with pytest.raises(CompositionError, match=r"The reference is .*a.* trains"):
        adapters.reference_model(model, "a")
    model.train_adapter("b")
    model.set_active_adapters(Stack("a", "b"))
    reference = adapters.reference_model(model, "a")
    assert torch.equal(reference(**given).logits, expected)
    assert not torch.equal(reference(**given).logits, adapters.reference_model(model)(**given).logits)
    base, first = (set(adapters.reference_model(model, setup).state_dict()) for setup in (None, "a"))
    assert first - base == set(adapter_parameters(model, "a"))
    assert not first & set(adapter_parameters(model, "b"))


def test_a_copy_of_the_reference_is_of_the_same_model() -> None:
    model = training(build("llama", "lm"))
    reference = adapters.reference_model(model)
    assert copy.deepcopy(reference).model is model
    pair: Any = copy.deepcopy(nn.ModuleList([model, reference]))
    assert pair[1].model is pair[0] is not model


def test_what_cannot_be_a_reference_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"got a LlamaForCausalLM.*adapters\.init"):
        adapters.reference_model(build("llama", "lm", adapted=False))
    model = build("llama", "lm")
    model.add_adapter("a", config="lora")
    with pytest.raises(CompositionError, match=r"base model alone, and would change.*train_adapter"):
        adapters.reference_model(model)
    model.train_adapter("a")
    with pytest.raises(AdapterNameError, match="'b'"):
        adapters.reference_model(model, "b")
    reference = adapters.reference_model(model)
    model.lm_head.requires_grad_(True)
    with pytest.raises(CompositionError, match=r"lm_head\.weight trains"):
        reference(**inputs("llama", "lm"))
    model.train_adapter("a")
    model.merge_adapter("a")
    with pytest.raises(MergeError, match="'a' is merged"):
        reference(**inputs("llama", "lm"))


# ------------------------------------------------------------------------------------------------------------------ DPO


def dpo(trl: Any, model: Any, reference: Any, tokenizer: Any, folder: Path, **changes: Any) -> Any:
    data = rows("pairs")
    return trl.DPOTrainer(
        model,
        reference,
        args=options(trl.DPOConfig, folder, **changes),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("method", ["lora", "prefix_tuning"])
def test_dpo_needs_no_second_model(method: str, trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    found = []
    for reference in (adapters.reference_model, lambda model: None):
        model = training(plain_in(tmp_path), CONFIGS[method])
        perturb(model, "a", scale=0.1)
        trainer = dpo(trl, model, reference(model), tokenizer, tmp_path)
        before = snapshot(model)
        start = trainer.evaluate()["eval_loss"]
        trainer.train()
        end = trainer.evaluate()["eval_loss"]
        assert end < start
        assert changed(before, model)
        assert not others(changed(before, model), "a")
        found.append([start, *history(trainer, "rewards/chosen", "logps/rejected"), end])
        if reference is adapters.reference_model:
            assert trainer.ref_model.model is model
    assert found[0] == found[1], "where it is not given TRL loads a second model"


def test_the_loss_of_dpo_is_that_of_peft(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, theirs = with_the_same_in_peft(tmp_path)
    found = []
    for each, reference in ((model, adapters.reference_model(model)), (theirs, None)):
        trainer = dpo(trl, each, reference, tokenizer, tmp_path)
        trainer.train()
        found.append(history(trainer, "rewards/chosen", "rewards/margins"))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-5)


def test_dpo_keeps_what_the_reference_says(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = training(build("llama", "lm"))
    perturb(model, "a", scale=0.1)
    start = snapshot(model)
    found = []
    for precompute in (False, True):
        model.load_state_dict(start)
        trainer = dpo(
            trl, model, adapters.reference_model(model), tokenizer, tmp_path, precompute_ref_log_probs=precompute
        )
        trainer.train()
        found.append(history(trainer, "rewards/chosen"))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    trainer = dpo(
        trl, model, adapters.reference_model(model), tokenizer, tmp_path, sync_ref_model=True, ref_model_sync_steps=1
    )
    with pytest.raises(UnsupportedError, match="sync_ref_model"):
        trainer.train()


# ----------------------------------------------------------------------------------------------------------------- GRPO


def grpo(
    trl: Any,
    model: Any,
    tokenizer: Any,
    folder: Path,
    reward: Callable[..., Any],
    eval_dataset: Any = None,
    **changes: Any,
) -> Any:
    given = {"num_generations": 4, "max_completion_length": 5, "per_device_train_batch_size": 4, "max_steps": 2}
    return trl.GRPOTrainer(
        model,
        reward,
        args=options(trl.GRPOConfig, folder, **{**given, **changes}),
        train_dataset=rows("completions").remove_columns("completion"),
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_grpo_needs_no_second_model(method: str, trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    found: list[list[Any]] = []
    for shared in (True, False):
        model = training(plain_in(tmp_path), CONFIGS[method])
        perturb(model, "a", scale=0.1)
        said: list[Any] = []

        def reward(completions: list[str], **kwargs: Any) -> list[float]:
            said.append(completions)  # noqa: B023
            return [float(len(set(text.split()))) for text in completions]

        trainer = grpo(trl, model, tokenizer, tmp_path, reward, beta=0.0 if shared else 0.1)
        if shared:
            trainer.ref_model, trainer.beta = adapters.reference_model(model), 0.1
        before = snapshot(model)
        trainer.train()
        assert changed(before, model)
        assert not others(changed(before, model), "a")
        found.append([said, *history(trainer, "kl", "reward")])
        assert max(history(trainer, "kl")) > 1e-4
    assert found[0] == found[1], "where beta is not 0 TRL loads a second model"


def test_grpo_generates_with_the_adapter(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = training(build("llama", "lm"))
    perturb(model, "a")
    start, said = snapshot(model), []

    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        said.extend(zip(prompts, completions))
        return [0.0] * len(prompts)

    grpo(trl, model, tokenizer, tmp_path, reward, max_steps=1, generation_kwargs={"do_sample": False}).train()
    model.load_state_dict(start)
    model.eval()
    expected, without = [], []
    for prompt, _ in said:
        given = tokenizer(prompt, return_tensors="pt")
        length = given["input_ids"].shape[1]
        generated = [model.generate(**given, max_new_tokens=5, do_sample=False)]
        with model.disable_adapters():
            generated.append(model.generate(**given, max_new_tokens=5, do_sample=False))
        for texts, tokens in zip((expected, without), generated):
            texts.append((prompt, tokenizer.decode(tokens[0, length:], skip_special_tokens=True)))
    assert said == expected != without


# --------------------------------------------------------------------------------------------------------------- reward


@pytest.mark.parametrize("flexible", [False, True], ids=["static", "flexible"])
def test_a_reward_model_trains_adapter_and_head(flexible: bool, trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    plain = plain_in(tmp_path, "llama", "classification", num_labels=1)
    model = AutoAdapterModel.from_pretrained(tmp_path / "base") if flexible else plain
    training(model, "seq_bn")
    data, before = rows("pairs"), snapshot(model)
    trainer = trl.RewardTrainer(
        model, options(trl.RewardConfig, tmp_path), train_dataset=data, eval_dataset=data, processing_class=tokenizer
    )
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start
    names = changed(before, model)
    assert names & set(adapter_parameters(model, "a"))
    heads = others(names, "a")
    assert heads
    assert all(name.startswith("heads." if flexible else "score.") for name in heads)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def with_reference(trl: Any, model: Any, tokenizer: Any, folder: Path, **changes: Any) -> Any:
    """A `GRPOTrainer` whose reference is the base model; half of the data is to be evaluated."""
    trainer = grpo(trl, model, tokenizer, folder, lambda completions, **_: [len(c) for c in completions], **changes)
    trainer.ref_model, trainer.beta = adapters.reference_model(model), 0.1
    return trainer


def trainer_of(kind: str, trl: Any, tokenizer: Any, folder: Path, **changes: Any) -> Any:
    """A trainer on a new model, with data for evaluation."""
    if kind == "GRPO":
        data = rows("completions").remove_columns("completion")
        return with_reference(trl, training(build("llama", "lm")), tokenizer, folder, eval_dataset=data, **changes)
    if kind == "DPO":
        model = training(build("llama", "lm"))
        return dpo(trl, model, adapters.reference_model(model), tokenizer, folder, **changes)
    model = training(build("llama", "classification", num_labels=1) if kind == "Reward" else build("llama", "lm"))
    data = rows("pairs" if kind == "Reward" else "completions")
    return getattr(trl, f"{kind}Trainer")(
        model,
        args=options(getattr(trl, f"{kind}Config"), folder, **changes),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )


class Snapshots(transformers.TrainerCallback):
    """Remembers the model at every evaluation, by the step."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, torch.Tensor]] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.at[state.global_step] = snapshot(model)


@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO", "Reward"])
def test_checkpoints_hold_what_trains_and_resume(kind: str, trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    seen, every = Snapshots(), {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}
    whole = trainer_of(kind, trl, tokenizer, tmp_path, **every, **best, metric_for_best_model="eval_loss")
    whole.add_callback(seen)
    whole.train()
    kept = Path(whole.state.best_model_checkpoint)
    assert not changed(seen.at[int(kept.name.removeprefix("checkpoint-"))], whole.model)
    assert changed(seen.at[2], whole.model) or changed(seen.at[4], whole.model)

    trained = sum(p.numel() * p.element_size() for p in whole.model.parameters() if p.requires_grad)
    files = list((tmp_path / "checkpoint-2").rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < trained + 4096 * len(files)
    assert "trl" in (tmp_path / "README.md").read_text(encoding="utf-8")

    part = trainer_of(kind, trl, tokenizer, tmp_path, **every)
    part.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not changed(seen.at[4], part.model)

    opened = build(
        "llama", "classification" if kind == "Reward" else "lm", **({"num_labels": 1} if kind == "Reward" else {})
    )
    opened.load_adapter(str(tmp_path / "checkpoint-4" / "a"), set_active=True)
    given = inputs("llama", "lm")
    assert torch.equal(infer(opened, given), infer(part.model.eval(), given))


# ---------------------------------------------------------------------------------------------------------------- guide


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_guide_runs(trl: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build("llama", "lm", adapted=False).save_pretrained("base")
    tokenizer.save_pretrained("base")
    prompts = rows("completions").remove_columns("completion")
    given = {"chats": rows("chats"), "pairs": rows("pairs"), "prompts": prompts}
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), given)
    trained, opened = (adapter_parameters(given[name], "chat") for name in ("model", "fresh"))
    assert trained.keys() == opened.keys()
    assert all(torch.equal(trained[name], opened[name]) for name in trained), "the others left it alone"
    assert given["trainer"].model is given["judge"] and given["judge"].active_adapters == Stack("reward")
