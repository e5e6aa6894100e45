"""Do the model classes open checkpoints, generate and train like those of transformers?"""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import adapters
from adapters import auto
from adapters.auto import ADAPTER_MODEL_MAPPING, AutoAdapterModel
from adapters.errors import UnsupportedError
from adapters.heads.language_modeling import scales_decoder, ties_embeddings
from adapters.sites.discovery.twin import randomised
from adapters.sites.specs import SPECS
from tests.heads.models import CONFIGS, WIDTH, add_head, inputs_for, tiny, tiny_config
from tests.zoo import inputs_of, small_config, small_model

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
    assert set(CONFIGS) <= set(SPECS) and set(auto.MODEL_KINDS) == set(MODEL_MAPPING_NAMES)
    assert set(auto.ADAPTER_MODEL_MAPPING_NAMES) == set(auto.MODEL_KINDS)
    bases = {(auto.ADAPTER_MODEL_MAPPING_NAMES[kind], base) for kind, base in auto.BASES.items()}
    assert len({name for name, _ in bases}) == len(bases), "two base models share a name"
    for kind in [*CONFIGS, *TAKES]:
        name = auto.ADAPTER_MODEL_MAPPING_NAMES[kind]
        assert getattr(adapters, name).__name__ == name
    with pytest.raises(AttributeError):
        auto.NoAdapterModel  # noqa: B018


TAKES = {
    "audioflamingo3": "causal_lm",
    "clip_text_model": "classification",
    "clip_vision_model": "image_classification",
    "dinov3_convnext": "image_classification",
    "florence2": "seq2seq_lm",
    "granite_speech": "causal_lm",
    "kosmos-2": "causal_lm",
    "mimi": None,
    "pixtral": "image_classification",
    "qwen2_vl_text": "causal_lm",
    "sam": None,
    "voxtral_encoder": "tagging",
    "wav2vec2": "ctc",
}
"""Types whose heads follow from what their base model takes and returns, and one of these; None: they have none."""


@pytest.mark.parametrize("model_type", TAKES)
def test_heads_follow_from_the_base_model(model_type: str) -> None:
    found = auto.MODEL_KINDS[model_type].head_types
    assert TAKES[model_type] in found if TAKES[model_type] else not found


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


TEXT = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
VIEW = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 8}
SIGHT = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 2, "mlp_ratio": 2}
TURNED = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
SEEING: dict[str, tuple[str, dict[str, Any], int]] = {
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VIEW, "patch_size": 4, "model_type": "clip_vision_model"},
            "image_token_id": 90,
        },
        4,
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**TEXT, "rope_parameters": TURNED},
            "vision_config": SIGHT,
            "image_token_id": 90,
            "video_token_id": 91,
            "vision_start_token_id": 92,
            "vision_end_token_id": 93,
        },
        4,
    ),
}
"""Types that write about images: class, config, tokens per image."""


@pytest.mark.parametrize("model_type", SEEING)
def test_what_is_written_about_images(model_type: str, tmp_path: Any) -> None:
    class_name, options, patches = SEEING[model_type]
    config = transformers.AutoConfig.for_model(model_type, **options)
    torch.manual_seed(0)
    plain = randomised(getattr(transformers, class_name)(config)).eval()
    plain.save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[92, *[90] * patches, 93, 5, 6, 7], [92, *[90] * patches, 93, 8, 9, 10]])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model_type == "llava":
        given["pixel_values"] = torch.randn(2, 3, 8, 8)
    else:
        given["pixel_values"] = torch.randn(2 * 16, 3 * 2 * 2 * 2)
        given["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
        given["mm_token_type_ids"] = (ids == 90).long()
    with torch.no_grad():
        want, got = (one(**given, labels=ids) for one in (plain, model))
        blind = model(input_ids=ids.where(ids != 90, 5)).logits
    torch.testing.assert_close(got.logits, want.logits)
    torch.testing.assert_close(got.loss, want.loss)
    assert not torch.allclose(blind, got.logits, atol=1e-3)
    for cached in (True, False):
        steps = {"max_new_tokens": 4, "do_sample": False, "use_cache": cached}
        assert torch.equal(model.generate(**given, **steps), plain.generate(**given, **steps))
    model.add_classification_head("c", num_labels=3)
    model.add_adapter("c", config="lora")
    model.train_adapter("c")
    model(**given, labels=torch.tensor([0, 2])).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if ".loras.c." in n and "language_model" in n)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_recognisers_of_tokens_per_frame(reduction: str, tmp_path: Any) -> None:
    """The loss too, with sounds and labels of different lengths."""
    torch.manual_seed(0)
    config = small_config("wav2vec2")
    config.ctc_loss_reduction = reduction
    plain = randomised(transformers.Wav2Vec2ForCTC(config)).eval()
    plain.save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path).eval()
    sounds, mask = torch.randn(2, 4000), torch.ones(2, 4000).long()
    mask[1, 2600:] = 0
    labels = torch.tensor([[5, 6, 7], [8, -100, -100]])
    with torch.no_grad():
        want, got = (one(sounds, attention_mask=mask, labels=labels) for one in (plain, model))
    torch.testing.assert_close(got.logits, want.logits)
    torch.testing.assert_close(got.loss, want.loss)
    assert model.heads["default"].config["reduction"] == reduction


@pytest.mark.parametrize("model_type", ["dinov3_convnext", "dinov3_vit", "sapiens2"])
def test_all_of_a_base_model_is_frozen(model_type: str) -> None:
    """Also where `base_model` is its list of layers."""
    model = small_model(model_type)
    assert model.base_model is not model
    adapters.init(model)
    model.add_adapter("a", config=adapters.LoRAConfig(r=2, places=["*"]))
    model.train_adapter("a")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".loras.a." in name for name in trained)
    model.freeze_model(False)
    assert all(p.requires_grad for p in model.parameters())
