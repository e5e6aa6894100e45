"""Do the model classes open checkpoints, generate and train like those of transformers?"""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
import transformers

import adapters
from adapters import auto
from adapters.auto import ADAPTER_MODEL_MAPPING, AutoAdapterModel
from adapters.errors import UnsupportedError
from adapters.heads.language_modeling import scales_decoder, ties_embeddings
from adapters.sites.discovery.twin import randomised
from adapters.sites.specs import SPECS
from tests.heads.models import CONFIGS, WIDTH, add_head, inputs_for, tiny, tiny_config
from tests.zoo import inputs_of, small_config

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("model_type", CONFIGS)
def test_class_of_each_type(model_type: str) -> None:
    config = tiny_config(model_type)
    cls = ADAPTER_MODEL_MAPPING[type(config)]
    assert getattr(auto, cls.__name__) is cls
    assert pickle.loads(pickle.dumps(cls)) is cls
    model = cls(config)
    base = getattr(transformers, auto.MODEL_KINDS[model_type].base)
    assert isinstance(model.base_model, base) and str(type(model.base_model)) == str(base)
    assert model.can_generate() == auto.MODEL_KINDS[model_type].generates
    names = list(inspect.signature(model.forward).parameters)
    assert names[0] in ("input_ids", "pixel_values")
    assert {"labels", "head", "start_positions", "kwargs"} <= set(names)
    assert "self" not in names


def test_mapping_is_complete() -> None:
    assert set(CONFIGS) <= set(SPECS) and set(CONFIGS) < set(auto.MODEL_KINDS)
    assert len(ADAPTER_MODEL_MAPPING.values()) >= len(auto.MODEL_KINDS)
    for name in auto.ADAPTER_MODEL_MAPPING_NAMES.values():
        assert getattr(adapters, name).__name__ == name
    with pytest.raises(AttributeError):
        auto.NoAdapterModel  # noqa: B018


FOUND = {
    "albert": "masked_lm",
    "bert-generation": "causal_lm",
    "bloom": "question_answering",
    "deberta": "masked_lm",
    "deberta-v2": "classification",
    "deit": "image_classification",
    "falcon": "causal_lm",
    "granite": "causal_lm",
    "gptj": "causal_lm",
    "modernbert": "tagging",
    "mpnet": "question_answering",
    "olmo2": "classification",
    "phi": "tagging",
    "plbart": "seq2seq_lm",
    "xmod": "classification",
}
"""Types that are not among `CONFIGS`, and a head that each gets."""


@pytest.mark.parametrize("model_type", FOUND)
def test_heads_of_other_types(model_type: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = AutoAdapterModel.from_config(small_config(model_type)).eval()
    model.add_adapter("a", config="lora")
    head = add_head(model, FOUND[model_type], "a")
    model.train_adapter("a")
    model.eval()
    given = inputs_of(model.base_model)
    given.pop("decoder_input_ids", None)
    if model_type == "plbart":  # <eos> at the end
        given["input_ids"][:, -1] = model.config.eos_token_id
    rows = len(next(iter(given.values())))
    if FOUND[model_type] == "question_answering":
        labels = {"start_positions": torch.zeros(rows).long(), "end_positions": torch.ones(rows).long()}
    elif FOUND[model_type] == "tagging":
        labels = {"labels": torch.zeros_like(given["input_ids"])}
    elif FOUND[model_type].endswith("lm"):
        labels = {"labels": given["input_ids"]}
    else:
        labels = {"labels": torch.zeros(rows).long()}
    out = model(**given, **labels)
    out.loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("heads.a") for name in trained) or head.tied
    assert any("loras" in name for name in trained)

    model.save_pretrained(tmp_path)
    again = AutoAdapterModel.from_pretrained(tmp_path).eval()
    again.set_active_adapters("a")
    again.active_head = "a"
    torch.testing.assert_close(again(**given, **labels).loss, out.loss)


def test_a_head_that_is_left_out_is_named(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    transformers.BertForPreTraining(small_config("bert")).save_pretrained(tmp_path)
    with caplog.at_level("WARNING", "adapters"):
        model = AutoAdapterModel.from_pretrained(tmp_path)
    assert "BertForPreTraining is left out" in caplog.text and "no flexible head" in caplog.text and not model.heads


def test_frames_of_padding_do_not_count(tmp_path: Any) -> None:
    torch.manual_seed(0)
    plain = randomised(transformers.Wav2Vec2ForSequenceClassification(small_config("wav2vec2"))).eval()
    plain.save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path).eval()
    sounds, mask = torch.randn(2, 4000), torch.ones(2, 4000).long()
    mask[1, 1600:] = 0
    with torch.no_grad():
        want, got = (one(sounds, attention_mask=mask).logits for one in (plain, model))
        unmasked = model(sounds).logits
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, unmasked, atol=1e-3)


@pytest.mark.parametrize("model_type", ["moonshine", "speech_to_text", "whisper"])
def test_recognisers_of_speech_generate_and_train(model_type: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    names = transformers.models.auto.modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    plain = randomised(getattr(transformers, names[model_type])(small_config(model_type))).eval()
    plain.save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path).eval()
    given = inputs_of(plain)
    labels = given.pop("decoder_input_ids")
    loss = model(**given, labels=labels).loss
    if model_type != "moonshine":  # which has no padding token, by which its own class shifts labels
        torch.testing.assert_close(loss, plain(**given, labels=labels).loss)
    given.pop("attention_mask", None)
    options = {"max_new_tokens": 4, "do_sample": False, "decoder_input_ids": labels[:, :1]}
    want = transformers.GenerationMixin.generate(plain, **given, **options)
    assert torch.equal(model.generate(**given, **options), want)
    model.add_adapter("a", config="lora")
    model.train_adapter("a")
    model(**given, labels=labels).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".loras." in name)


def test_types_without_tasks_have_no_heads() -> None:
    model = AutoAdapterModel.from_config(small_config("clip")).eval()
    given = inputs_of(model.base_model)
    assert torch.equal(model(**given).logits_per_image, model.base_model(**given).logits_per_image)
    with pytest.raises(UnsupportedError, match="for none of the tasks that heads are for"):
        model.add_classification_head("h")


@pytest.mark.parametrize("model_type", CONFIGS)
def test_base_checkpoint(model_type: str, tmp_path: Any) -> None:
    model = tiny(model_type)
    model.base_model.save_pretrained(tmp_path)
    again, info = AutoAdapterModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.active_head is None
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


def test_positional_arguments() -> None:
    model = tiny("bert")
    add_head(model, "classification")
    inputs = inputs_for(model)
    want = model(**inputs).logits
    assert torch.equal(model(inputs["input_ids"], inputs["attention_mask"]).logits, want)


GENERATORS = [
    ("gpt2", "GPT2LMHeadModel"),
    ("llama", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("t5", "T5ForConditionalGeneration"),
    ("bart", "BartForConditionalGeneration"),
    ("mbart", "MBartForConditionalGeneration"),
]


@pytest.mark.parametrize(("model_type", "class_name"), GENERATORS)
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}])
def test_generate(model_type: str, class_name: str, options: dict[str, Any], tmp_path: Any) -> None:
    torch.manual_seed(0)
    plain = getattr(transformers, class_name)(tiny_config(model_type)).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain.save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path).eval()
    ids = inputs_for(model)["input_ids"][:1]
    options = {"max_new_tokens": 5, "do_sample": False, **options}
    mask = torch.ones_like(ids)
    want = plain.generate(ids, attention_mask=mask, **options)
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), want)


@pytest.mark.parametrize(("model_type", "class_name"), GENERATORS)
def test_decoder_inputs_follow_from_labels(model_type: str, class_name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    plain = getattr(transformers, class_name)(tiny_config(model_type)).eval()
    plain.save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path).eval()
    inputs = inputs_for(model)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    torch.testing.assert_close(model(**inputs, labels=labels).loss, plain(**inputs, labels=labels).loss)
    if model.config.is_encoder_decoder:
        want = plain.prepare_decoder_input_ids_from_labels(labels=labels)
        assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels=labels), want)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_only_encoder_decoders_make_decoder_inputs_of_labels(model_type: str) -> None:
    """Data collators ask for the attribute, also in front of decoders."""
    model = tiny(model_type)
    assert hasattr(model, "prepare_decoder_input_ids_from_labels") == bool(model.config.is_encoder_decoder)


def test_outputs_carry_caches_and_states() -> None:
    model = tiny("gpt2")
    add_head(model, "causal_lm")
    out = model(**inputs_for(model), output_hidden_states=True, output_attentions=False)
    assert out.past_key_values is not None
    assert len(out.hidden_states) == 3
    add_head(model, "classification", "c")
    assert len(model(**inputs_for(model), output_hidden_states=True).hidden_states) == 3


def test_t5_scale_follows_the_checkpoint() -> None:
    for stored, scaled in ((None, True), (True, True), (False, False)):
        options = {} if stored is None else {"tie_word_embeddings": stored}
        model = tiny("t5", **options)
        assert scales_decoder(model.config) is ties_embeddings(model.config) is scaled
        assert add_head(model, "seq2seq_lm").tied is scaled
        inputs = inputs_for(model)
        headless = model.base_model(**inputs, decoder_input_ids=inputs["input_ids"]).last_hidden_state
        model.active_head = None
        got = model(**inputs, decoder_input_ids=inputs["input_ids"]).last_hidden_state
        torch.testing.assert_close(got, headless * (WIDTH**-0.5 if scaled else 1.0))


def test_mt5_scale_follows_the_raw_config(tmp_path: Any) -> None:
    base = tiny("mt5").base_model
    base.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    import json

    raw = json.loads(file.read_text())
    raw.pop("scale_decoder_outputs", None)
    for tied, version, scaled in ((True, "5.23.0", False), (True, "4.57.6", True), (False, "4.57.6", False)):
        file.write_text(json.dumps({**raw, "tie_word_embeddings": tied, "transformers_version": version}))
        model = AutoAdapterModel.from_pretrained(tmp_path)
        assert scales_decoder(model.config) is scaled
        model.save_pretrained(tmp_path / "again")
        assert scales_decoder(AutoAdapterModel.from_pretrained(tmp_path / "again").config) is scaled


def test_multiple_choice_flattens_its_inputs() -> None:
    model = tiny("roberta")
    add_head(model, "multiple_choice")
    inputs = inputs_for(model, "multiple_choice")
    assert inputs["input_ids"].dim() == 3
    out = model(**inputs, labels=torch.tensor([0, 1]))
    flat = model(**{name: value.flatten(0, 1) for name, value in inputs.items()})
    assert torch.equal(out.logits, flat.logits)


def test_half_precision_heads_follow_the_model() -> None:
    model = tiny("bert").to(torch.bfloat16)
    assert add_head(model, "classification")[1].weight.dtype is torch.bfloat16
    assert add_head(model, "dependency_parsing", "p").biaffine_arcs.weight.dtype is torch.bfloat16


def test_the_trainer_evaluates_and_trains(tmp_path: Any) -> None:
    model = tiny("bert").train()
    add_head(model, "classification", num_labels=2)
    rows = [{"input_ids": [5, 6, 7, 2], "labels": i % 2, "unused": "x"} for i in range(4)]
    args = transformers.TrainingArguments(
        tmp_path, max_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trainer = transformers.Trainer(
        model, args, train_dataset=rows, eval_dataset=rows, data_collator=transformers.default_data_collator
    )
    before = model.heads["h"][1].weight.clone()
    trainer.train()
    assert not torch.equal(model.heads["h"][1].weight, before)
    assert trainer.evaluate()["eval_loss"] > 0
