"""Families that are described by hand and that `tests/tiny.py` has not: against what is found, and what they mean."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    RobertaConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    WhisperForAudioClassification,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
)

import adapters
from adapters import AutoAdapterModel, BatchSplit, BnConfig, DoubleSeqBnConfig, LoRAConfig, Parallel, PrefixTuningConfig
from adapters.errors import CheckpointError, ConfigError, UnsupportedError
from adapters.sites.discovery import cache, discover
from adapters.sites.lookup import spec_for, written
from adapters.sites.resolve import resolve
from adapters.sites.site import LinearSite
from adapters.sites.spec import LayerList, LayerSpec, Linear
from tests.tiny import adapter_parameters, config, hooks, infer, inputs, perturb, randomised
from tests.zoo import inputs_of, output, probe, small_model

FURTHER = ("albert", "beit", "clip", "clip_text_model", "clip_vision_model", "deberta", "deberta-v2", "whisper")
EXPLAINED: dict[tuple[str, str], str] = {
    ("albert", "attn"): "trained adapters are given x for h, and hang where files have them",
    ("clip", "embed"): "the model does not say which of its embeddings are those of tokens",
    ("clip", "order"): "files count the layers of the text first",
    ("whisper", "embed"): "trained invertible adapters act where the encoder ends",
}
"""Where what people wrote is not what is found, and why."""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, "")


def differences(kind: str) -> set[tuple[str, str]]:
    model = small_model(kind)
    theirs, ours = written(model), discover(model)
    assert theirs is not None and theirs.causal == ours.causal
    found = {layers.path: layers for layers in ours.layers}
    different = set()
    if list(found) != [layers.path for layers in theirs.layers]:
        different.add("order")
    if theirs.places.get("embed") != ours.places.get("embed"):
        different.add("embed")
    widths = {site.path: site for site in resolve(model, ours) if isinstance(site, LinearSite)}
    for site in resolve(model, theirs):
        if isinstance(site, LinearSite) and site.columns:
            assert site.columns == widths[site.path].columns
    for layers in theirs.layers:
        mine = found[layers.path]
        assert isinstance(layers.layer, LayerSpec) and isinstance(mine.layer, LayerSpec)
        assert set(layers.layer.places) == set(mine.layer.places) and not mine.layer.refused
        if layers.stack != mine.stack:
            different.add("stack")
        for role, place in layers.layer.places.items():
            if place != mine.layer.places[role] and not (isinstance(place, Linear) and place.columns):
                different.add(role)
    return {(kind, one) for one in different}


@pytest.mark.versions
@pytest.mark.parametrize("kind", FURTHER)
def test_what_people_wrote_is_found(kind: str) -> None:
    """The same layers, roles and addresses, but for what is explained."""
    assert differences(kind) == {key for key in EXPLAINED if key[0] == kind}


def bert_like(kind: str, **options: Any) -> Any:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "vocab_size": 64,
        "max_position_embeddings": 48,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
        "pad_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(adapters.AutoAdapterModel.from_config(AutoConfig.for_model(kind, **{**sizes, **options})))


GIVEN = {
    "input_ids": torch.arange(28).reshape(4, 7) % 60 + 3,
    "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7, [1] * 4 + [0] * 3]),
}


class TestAlbert:
    """One layer is many."""

    @pytest.mark.parametrize("changes", [{}, {"original_ln_before": True}, {"is_parallel": True}, {"ln_after": True}])
    def test_bottlenecks_behind_the_attention_read_its_input(self, changes: dict[str, Any]) -> None:
        """Against the formula, written out here for a layer."""
        model = bert_like("albert", num_hidden_layers=1)
        model.add_adapter("a", config=BnConfig(True, False, 4, "relu", **changes), set_active=True)
        perturb(model, "a")
        layer = model.base_model.encoder.albert_layer_groups[0].albert_layers[0]
        attention = layer.attention
        seen: dict[str, Tensor] = {}

        def of_input(module: nn.Module, args: Any) -> None:
            seen["input"] = args[0]

        def of_projection(module: nn.Module, args: Any, output: Tensor) -> None:
            seen["added"] = output

        def of_norm(module: nn.Module, args: Any, output: Tensor) -> None:
            seen["output"] = output

        attention.register_forward_pre_hook(of_input)
        attention.dense.register_forward_hook(of_projection)
        layer.ffn.register_forward_pre_hook(lambda module, args: of_norm(module, args, args[0]))
        infer(model, GIVEN)
        h, x = seen["input"], seen["added"]
        adapter = attention.attention_adapters.adapters["a"]

        def norm(z: Tensor) -> Tensor:
            return nn.functional.layer_norm(z, (32,), attention.LayerNorm.weight, attention.LayerNorm.bias, 1e-12)

        read = x if changes.get("is_parallel") else norm(h + x) if changes.get("original_ln_before") else h
        update = adapter.adapter_up(torch.relu(adapter.adapter_down[0](read)))
        if changes.get("ln_after"):
            update = adapter.adapter_norm_after(update)
        torch.testing.assert_close(seen["output"], norm(h + x + update), atol=1e-5, rtol=1e-5)

    def test_groups_are_numbered_and_their_names_in_files(self, tmp_path: Path) -> None:
        model = bert_like("albert", num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2)
        model.add_adapter("a", config=DoubleSeqBnConfig(reduction_factor=4, leave_out=[1]))
        assert {layer for layer in model.get_adapter("a") if layer >= 0} == {0, 2, 3}
        model.save_adapter(tmp_path, "a")
        group = "albert.encoder.albert_layer_groups.1.albert_layers.1"
        names = set(load_file(tmp_path / "adapter.safetensors"))
        assert f"{group}.attention.attention_adapters.adapters.a.adapter_up.weight" in names
        assert f"{group}.output_adapters.adapters.a.adapter_up.weight" in names
        assert not any("groups.0.albert_layers.1." in name for name in names)


class TestDeberta:
    """One projection whose columns are arranged by heads."""

    def test_flags_mean_thirds_and_places_the_real_columns(self, tmp_path: Path) -> None:
        model = bert_like("deberta")
        model.add_adapter("flags", config=LoRAConfig(r=2, attn_matrices=["q"]))
        model.add_adapter("places", config=LoRAConfig(r=2, places="attn.q"))
        perturb(model, "flags", "places")
        projection = model.base_model.encoder.layer[0].attention.self.in_proj
        given, plain = torch.randn(2, 3, 32), {}
        for setup in (None, "flags", "places"):
            model.set_active_adapters(setup)
            plain[setup] = projection(given).detach()
        moved = {name: (plain[name] != plain[None]).any(0).any(0) for name in ("flags", "places")}
        columns = torch.arange(96)
        assert torch.equal(moved["flags"], columns < 32)
        assert torch.equal(moved["places"], columns % 24 < 8)  # q, k and v of one head after the other, each 8 wide
        for name in ("flags", "places"):
            model.save_adapter(tmp_path / name, name)
            model.set_active_adapters(name)
            expected = infer(model, GIVEN)
            again = bert_like("deberta")
            again.load_adapter(tmp_path / name, set_active=True)
            assert torch.equal(infer(again, GIVEN), expected)

    @pytest.mark.parametrize("kind", ["deberta", "deberta-v2"])
    @pytest.mark.parametrize("masked", [True, False])
    def test_prompts_do_not_attend_to_padding(self, kind: str, masked: bool) -> None:
        """Every row of a batch is what it is alone, without its padding."""
        model = bert_like(kind)
        model.add_adapter("a", config="prompt_tuning[prompt_length=3]", set_active=True)
        given = GIVEN if masked else {"input_ids": GIVEN["input_ids"]}
        together = infer(model, given)
        assert together.shape == (4, 10, 32)
        for row in range(4):
            length = int(GIVEN["attention_mask"][row].sum()) if masked else 7
            alone = infer(model, {"input_ids": GIVEN["input_ids"][row : row + 1, :length]})
            torch.testing.assert_close(together[row : row + 1, : 3 + length], alone, atol=1e-5, rtol=1e-5)


def test_beit_with_relative_positions_has_prefixes_and_no_prompts() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    config = AutoConfig.for_model("beit", image_size=16, patch_size=8, use_relative_position_bias=True, **sizes)
    model = AutoAdapterModel.from_config(config).eval()
    with pytest.raises(UnsupportedError, match="one bias for each pair of patches"):
        model.add_adapter("a", config="prompt_tuning")
    model.add_adapter("p", config=PrefixTuningConfig(flat=True, prefix_length=3))
    given = {"pixel_values": torch.randn(2, 3, 16, 16)}
    plain = infer(model, given)
    with adapters.AdapterSetup(BatchSplit("p", None, batch_sizes=1)):
        half = infer(model, given)
    assert not torch.allclose(half[0], plain[0], atol=1e-4)
    torch.testing.assert_close(half[1], plain[1], atol=1e-5, rtol=1e-5)


class TestClip:
    """Two towers, together or each by itself."""

    PREFIX = PrefixTuningConfig(flat=True, prefix_length=2)

    def test_names_in_files(self, tmp_path: Path) -> None:
        """A tower by itself was, in files, inside of a model that is nowhere now; with a projection too."""
        import transformers

        towers = {"text_model": transformers.CLIPTextModel, "vision_model": transformers.CLIPVisionModel}
        heads = (transformers.CLIPTextModelWithProjection, transformers.CLIPVisionModelWithProjection)
        whole = small_model("clip").config
        for (tower, kind), headed in zip(towers.items(), heads, strict=True):
            part = getattr(whole, tower.replace("model", "config"))
            one, other = (adapters.init(each(part).eval()) for each in (kind, headed))
            one.add_adapter("a", config=DoubleSeqBnConfig(reduction_factor=8))
            one.add_adapter("p", config=self.PREFIX)
            perturb(one, "a")
            for name, start in (("a", f"{tower}.encoder.layers.0."), ("p", "prefix_tuning.prefix_tunings.p.")):
                one.save_adapter(tmp_path / name, name)
                names = list(load_file(tmp_path / name / "adapter.safetensors"))
                assert any(key.startswith(start) for key in names)
                other.load_adapter(tmp_path / name)
                other.save_adapter(tmp_path / f"{name}2", name)
                assert list(load_file(tmp_path / f"{name}2" / "adapter.safetensors")) == names
            assert names == [f"prefix_tuning.prefix_tunings.p.clip_{tower}_self_prefix.control_trans"]
            ours, theirs = adapter_parameters(one, "a").values(), adapter_parameters(other, "a").values()
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            other.save_pretrained(tmp_path / "whole")
            again = adapters.load_model(tmp_path / "whole", headed)
            found = zip(adapter_parameters(again, "a").values(), theirs, strict=True)
            assert all(torch.equal(a, b) for a, b in found)

    def test_both_towers_have_a_flexible_model_that_trains(self) -> None:
        model = AutoAdapterModel.from_config(small_model("clip").config).eval()
        model.add_adapter("a", config="seq_bn")
        model.train_adapter("a")
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapter_parameters(model, "a"))
        model.freeze_embeddings()
        with pytest.raises(UnsupportedError, match="no input embeddings"):
            model.train_adapter("a", train_embeddings=True)
        given = inputs_of(model.base_model)
        output(model, given).sum().backward()
        assert all(p.grad is not None for p in adapter_parameters(model, "a").values())


class TestWhisper:
    """Sound, then text."""

    OPTIONS: ClassVar[dict[str, Any]] = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40,
        "num_mel_bins": 8,
        "max_source_positions": 6,
        "max_target_positions": 20,
        "vocab_size": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
        "classifier_proj_size": 8,
        "dropout": 0.0,
        "init_std": 0.1,
        "begin_suppress_tokens": None,
        "suppress_tokens": None,
    }

    def test_sound_by_its_name_or_by_its_place(self) -> None:
        """Its `generate` calls what comes first otherwise than others do."""
        config = AutoConfig.for_model("whisper", **self.OPTIONS)
        model = adapters.init(randomised(WhisperForConditionalGeneration(config)))
        for name in "ab":
            model.add_adapter(name, config="double_seq_bn")
            perturb(model, name, seed=ord(name))
        sound, options = torch.randn(2, 8, 12), {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        singles = []
        for name in "ab":
            model.set_active_adapters(name)
            singles.append(model.generate(sound, **options))
            assert torch.equal(model.generate(input_features=sound, **options), singles[-1])
        model.set_active_adapters(Parallel("a", "b"))
        assert torch.equal(model.generate(input_features=sound, **options), torch.cat(singles))
        assert torch.equal(model.generate(sound, **options), torch.cat(singles))

    def test_a_head_trains_and_generates(self) -> None:
        model = AutoAdapterModel.from_config(AutoConfig.for_model("whisper", **self.OPTIONS)).eval()
        model.add_adapter("a", config="double_seq_bn")
        model.add_seq2seq_lm_head("a")
        model.train_adapter("a")
        sound = torch.randn(2, 8, 12)
        loss = model(input_features=sound, labels=torch.tensor([[5, 6, 7], [8, 9, 2]])).loss
        loss.backward()
        assert loss.isfinite() and all(p.grad is not None for p in adapter_parameters(model, "a").values())
        tokens = model.eval().generate(sound, max_new_tokens=4, do_sample=False)
        step = torch.full((2, 1), 3)
        for _ in range(tokens.shape[1] - 1):
            logits = model(input_features=sound, decoder_input_ids=step).logits
            step = torch.cat([step, logits[:, -1].argmax(-1)[:, None]], 1)
        ended = (step == 2).int().cumsum(1).roll(1, 1)
        ended[:, 0] = 0
        assert torch.equal(tokens, step.masked_fill(ended > 0, 1))

    @pytest.mark.parametrize(
        ("kind", "layers"), [(WhisperForCausalLM, "decoder.layers"), (WhisperForAudioClassification, "encoder.layers")]
    )
    def test_half_of_a_model(self, kind: Any, layers: str) -> None:
        model = adapters.init(kind(AutoConfig.for_model("whisper", **self.OPTIONS)))
        model.add_adapter("a", config="double_seq_bn")
        paths = {site.path for site in model._engine.sites if site.role == "ffn.up"}
        assert paths == {f"{layers}.{number}.fc1" for number in range(2)}


def decoder(kind: Any) -> Any:
    sizes = config("bert").to_dict() if kind is not GPT2Config else config("gpt2").to_dict()
    return kind(**{**sizes, "is_decoder": True, "add_cross_attention": True})


def pair(encoder: Any = BertConfig, of: Any = BertConfig) -> Any:
    """A tiny model of two others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if encoder is ViTConfig:
            both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(config("vit"), decoder(of))
            return randomised(VisionEncoderDecoderModel(both))
        both = EncoderDecoderConfig.from_encoder_decoder_configs(encoder(**config("bert").to_dict()), decoder(of))
        return randomised(EncoderDecoderModel(both))


def given_to(encoder: Any) -> dict[str, Any]:
    ids = {"decoder_input_ids": torch.arange(20).reshape(4, 5) + 5}
    return {**inputs("vit" if encoder is ViTConfig else "bert"), **ids}


class TestPairs:
    """Two models of any types make one."""

    @pytest.mark.parametrize(
        ("encoder", "of", "described"),
        [
            (BertConfig, BertConfig, True),
            (RobertaConfig, BertConfig, True),
            (ViTConfig, RobertaConfig, True),
            (BertConfig, GPT2Config, False),
        ],
    )
    def test_all_methods_act_in_both_halves(self, encoder: Any, of: Any, described: bool, tmp_path: Path) -> None:
        """Their weights train, go into files and come back."""
        model = pair(encoder, of)
        assert model.decoder.config.add_cross_attention
        given, original = given_to(encoder), infer(model, given_to(encoder))
        other = copy.deepcopy(model)
        if described:
            names = {layers.path: set(layers.layer.places) for layers in spec_for(model).layers}  # type: ignore[union-attr]
            assert "cross.core" in names.popitem()[1] and "cross.core" not in names.popitem()[1]
        adapters.init(model), adapters.init(other)
        for name, kind in {"bn": "double_seq_bn", "c": "compacter[reduction_factor=2]", "p": "prefix_tuning"}.items():
            model.add_adapter(name, config=kind, set_active=True)
            perturb(model, name, scale=0.1)
            model.train_adapter(name)
            model.eval()
            result = model(**given).logits
            result.pow(2).sum().backward()
            assert not torch.allclose(result, original)
            assert all(p.grad is not None for p in adapter_parameters(model, name).values())
            model.save_adapter(tmp_path / name, name)
            other.load_adapter(tmp_path / name, set_active=True)
            assert torch.equal(infer(other, given), result)
            other.delete_adapter(name)
        assert torch.equal(infer(other, given), original) and not hooks(other)

    def test_names_in_files_are_those_of_the_halves(self, tmp_path: Path) -> None:
        model = adapters.init(pair(ViTConfig, RobertaConfig))
        model.add_adapter(
            "a", config="lora[attn_matrices=['q']]|prefix_tuning[flat=True]|compacter[reduction_factor=2]"
        )
        model.save_adapter(tmp_path, "a")
        names = set(load_file(tmp_path / "adapter.safetensors"))
        assert {
            "encoder.encoder.layer.0.attention.attention.query.loras.a.lora_A",
            "decoder.roberta.encoder.layer.0.crossattention.self.query.loras.a.lora_A",
            "encoder.prefix_tuning.prefix_tunings.a.self_prefix.control_trans",
            "decoder.roberta.prefix_tuning.prefix_tunings.a.self_prefix.control_trans",
            "decoder.roberta.prefix_tuning.prefix_tunings.a.cross_prefix.control_trans",
            "encoder.shared_parameters.a.phm_rule",
        } <= names
        assert not any(name.startswith(("prefix_tuning.", "shared_parameters.")) for name in names)

    def test_files_that_hold_one_tensor_several_times(self, tmp_path: Path) -> None:
        """They are read if it is everywhere the same, and refused if it is not."""
        model = adapters.init(pair())
        model.add_adapter("a", config="seq_bn_inv[phm_layer=True,reduction_factor=2]")
        perturb(model, "a")
        model.save_adapter(tmp_path, "a")
        path = tmp_path / "adapter.safetensors"
        tensors = load_file(path)
        common = {k: t for k, t in tensors.items() if k.startswith(("encoder.inv", "encoder.shared"))}
        for start in ("decoder.bert.", ""):
            tensors |= {start + key.removeprefix("encoder."): t.clone() for key, t in common.items()}
        save_file(tensors, path)
        other = adapters.init(pair())
        other.load_adapter(tmp_path)
        ours, theirs = adapter_parameters(model, "a").values(), adapter_parameters(other, "a").values()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        tensors["decoder.bert.shared_parameters.a.phm_rule"] += 1
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match="two names of one tensor"):
            other.load_adapter(tmp_path, load_as="b")
        assert "b" not in other.adapters_config

    def test_a_layer_is_left_out_of_prefixes(self, tmp_path: Path) -> None:
        """What is stored for all layers of a half in one tensor has no part for the one that is left out."""
        model = adapters.init(pair())
        model.add_adapter("p", config=PrefixTuningConfig(flat=True, prefix_length=2))
        model.save_adapter(tmp_path, "p")
        whole = load_file(tmp_path / "adapter.safetensors")
        model.load_adapter(tmp_path, load_as="q", leave_out=[2])
        model.save_adapter(tmp_path / "q", "q")
        left = load_file(tmp_path / "q" / "adapter.safetensors")
        start = "prefix_tuning.prefix_tunings"
        assert torch.equal(
            left[f"encoder.{start}.q.self_prefix.control_trans"], whole[f"encoder.{start}.p.self_prefix.control_trans"]
        )
        for kind in ("self_prefix", "cross_prefix"):
            both = whole[f"decoder.bert.{start}.p.{kind}.control_trans"].view(2, 2, -1)
            assert torch.equal(left[f"decoder.bert.{start}.q.{kind}.control_trans"].view(2, 1, -1), both[:, 1:])

    def test_its_halves_are_models_that_people_know(self) -> None:
        """A prefix in the encoder alone does what it does in the encoder by itself."""
        model = adapters.init(pair())
        alone = adapters.init(BertModel(model.encoder.config).eval())
        alone.load_state_dict(model.encoder.state_dict())
        for one, places in ((model, "0-1:attn.core"), (alone, None)):
            one.add_adapter("p", config=PrefixTuningConfig(flat=True, prefix_length=2, places=places), set_active=True)
        ours, theirs = (list(adapter_parameters(one, "p").values()) for one in (model, alone))
        with torch.no_grad():
            theirs[0].copy_(ours[0])
        given = given_to(BertConfig)
        states = model(**given).encoder_last_hidden_state
        rest = {key: value for key, value in given.items() if not key.startswith("decoder")}
        assert len(ours) == len(theirs) == 1
        torch.testing.assert_close(states, alone(**rest).last_hidden_state)


class NoCaches:
    """What FlauBERT takes apart into the caches of its layers, none of which it has."""

    def get_seq_length(self) -> int:
        return 0

    def __getitem__(self, layer: int) -> None:
        return None


class TestXLM:
    """Layers whose parts stand in lists side by side."""

    SIZES: ClassVar[dict[str, Any]] = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 64, "pad_index": 2}

    def model(self, kind: str, **options: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return randomised(AutoModel.from_config(AutoConfig.for_model(kind, **self.SIZES, **options)))

    @pytest.mark.parametrize(("kind", "first"), [("xlm", False), ("flaubert", False), ("flaubert", True)])
    def test_every_role_is_there_and_works(self, kind: str, first: bool) -> None:
        model = self.model(kind, **({"pre_norm": True} if first else {}))
        found = probe(model, {**GIVEN, "cache": NoCaches()} if first else GIVEN)
        assert found.failures == {} and found.unnamed == []
        expected = {f"attn{part}" for part in ("", ".q", ".k", ".v", ".o", ".core", ".norm")}
        expected |= {"ffn", "ffn.up", "ffn.down", "ffn.norm", "layer"}
        assert set(found.roles) == expected - ({"layer"} if first else set())
        assert ("layer" in found.refused) == first

    @pytest.mark.parametrize("kind", ["xlm", "flaubert"])
    def test_bottlenecks_read_the_sums_of_their_layer(self, kind: str) -> None:
        """h + U relu(D norm(h + x)), against hooks that compute it from what goes into both parts of each layer."""
        model = self.model(kind)
        plain = copy.deepcopy(model)
        adapters.init(model)
        config = BnConfig(True, True, 4, "relu", original_ln_before=True)
        model.add_adapter("a", config=config, set_active=True)
        perturb(model, "a")
        for number in range(2):
            parts = (("attentions", plain.layer_norm1[number]), ("ffns", plain.layer_norm2[number]))
            for name, norm in parts:
                adapter = model.get_submodule(f"{name}.{number}.adapters.a")

                def added(module: Any, args: Any, given: Any, norm: Any = norm, adapter: Any = adapter) -> Any:
                    h = given[0] if isinstance(given, tuple) else given
                    h = h + adapter.adapter_up(torch.relu(adapter.adapter_down[0](norm(h + args[0]))))
                    return (h,) if isinstance(given, tuple) else h

                getattr(plain, name)[number].register_forward_hook(added)
        torch.testing.assert_close(infer(model, GIVEN), infer(plain, GIVEN))

    def test_layers_are_counted_as_anywhere(self) -> None:
        model = adapters.init(self.model("xlm"))
        model.add_adapter("a", config=LoRAConfig(places="attn.q", leave_out=[0]))
        assert set(model.get_adapter("a")) == {1}
        layers = dict(model.iter_layers())
        assert list(layers) == [0, 1] and model.attentions[1] in layers[1].children()
        with pytest.raises(ConfigError, match="need a spec for each"):
            LayerList("", LayerSpec({}), apart=True)
