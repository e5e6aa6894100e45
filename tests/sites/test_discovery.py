"""What is found by tracing: equal to what people wrote for their families, right in other types, and quiet."""

from __future__ import annotations

import copy
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BertConfig, PreTrainedConfig, PreTrainedModel

import adapters
from adapters import AutoAdapterModel
from adapters.errors import UnsupportedError
from adapters.methods.state import per_head
from adapters.sites import discovery
from adapters.sites.discovery import cache, discover
from adapters.sites.discovery.columns import as_columns
from adapters.sites.discovery.twin import shrunken
from adapters.sites.lookup import spec_for
from adapters.sites.resolve import resolve
from adapters.sites.site import told_number
from adapters.sites.spec import At, Branch, Columns, LayerSpec, ModelSpec
from tests.tiny import BART, TINY_MODELS, adapter_parameters, build, infer, inputs, perturb, randomised
from tests.zoo import assert_documented, hook_names, inputs_of, output, probe, sample_of, small_model, state

pytestmark = pytest.mark.versions

SAME_TENSOR = {("gpt2", "ffn"): "mlp", ("vit", "ffn"): "mlp"}
"""Branches for which another module is found that gives the same tensor, or adapters stand elsewhere by old names."""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, "")


@pytest.mark.parametrize("name", TINY_MODELS)
def test_what_people_wrote_is_found(name: str) -> None:
    """The same layers, roles and addresses, but for the prompts of encoders, which nothing in a pass tells."""
    model = build(name, adapted=False)
    written, found = spec_for(model), discover(model)
    assert [layers.path for layers in found.layers] == [layers.path for layers in written.layers]
    assert [layers.stack for layers in found.layers] == [layers.stack for layers in written.layers]
    assert found.causal == written.causal
    encodes = TINY_MODELS[name].kind in ("encoder", "image")
    assert found.places.get("embed.prompt") == (None if encodes else written.places["embed.prompt"])
    assert ("embed.prompt" in found.refused) == encodes
    assert ("embed" in found.places) == ("embed" in written.places)
    for ours, theirs in zip(found.layers, written.layers, strict=True):
        assert isinstance(ours.layer, LayerSpec) and isinstance(theirs.layer, LayerSpec)
        assert not ours.layer.refused and set(ours.layer.places) == set(theirs.layer.places)
        for role, place in theirs.layer.places.items():
            mine = ours.layer.places[role]
            if (name, role) in SAME_TENSOR:
                assert isinstance(mine, Branch) and isinstance(place, Branch)
                assert mine.h == At(SAME_TENSOR[name, role]) and (mine.x, mine.norm) == (place.x, place.norm)
            else:
                assert mine == place, role


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_other_addresses_mean_the_same_tensor(name: str) -> None:
    """Where the addresses differ from those that people wrote: the tensors there."""
    model = build(name, adapted=False)
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output)

    def keep_input(module: nn.Module, args: Any) -> None:
        seen.append(args[0])

    if name == "gpt2":
        handles = [model.get_submodule(p).register_forward_hook(keep) for p in ("h.0.mlp", "h.0.mlp.dropout")]
    else:
        place = discover(model).places["embed"]
        assert isinstance(place, At)
        handles = [model.get_submodule(place.path).register_forward_hook(keep)]
        handles.append(model.encoder.block[0].register_forward_pre_hook(keep_input))
    infer(model, inputs(name))
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 and torch.equal(*seen)


STYLES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("albert", "beit", "clip", "cohere", "dinov2", "gemma2", "gemma3_text", "glm"), frozenset()),
    **dict.fromkeys(("gpt_bigcode", "gpt_neox", "marian", "modernbert", "olmo2", "opt", "persimmon"), frozenset()),
    **dict.fromkeys(("phi", "phi3", "plbart", "roberta-prelayernorm", "stablelm", "starcoder2"), frozenset()),
    **dict.fromkeys(("swin", "umt5", "wav2vec2", "whisper", "granite", "esmc"), frozenset()),
    **dict.fromkeys(
        ("bloom", "codegen", "deberta", "deberta-v2", "falcon", "gpt_neo", "gptj", "mpnet", "mpt"), frozenset()
    ),
    **dict.fromkeys(("roformer", "mixtral", "qwen3_moe", "gpt_oss", "olmoe"), frozenset()),
    "deepseek_v3": frozenset({"attn.k"}),
    "llama4_text": frozenset({"ffn.up"}),
    "longcat_flash": frozenset({"attn.k", "ffn", "ffn.up"}),
}
"""A sample of types of every style, and the roles that are refused there."""
PARTS = {f"attn{part}" for part in ("", ".q", ".k", ".v", ".o", ".core", ".norm")}
WHOLE = PARTS | {"ffn", "ffn.up", "ffn.down", "ffn.norm"}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", STYLES)
def test_a_type_that_nobody_described(model_type: str) -> None:
    """Every role is found or refused, and adapters there do what the docs say that they do."""
    model = small_model(model_type)
    found = probe(model, inputs_of(model), model_type, sample_of(model_type))
    assert_documented(model_type, found)
    refused = {role for role in found.refused if not role.startswith("embed")}
    assert refused == STYLES[model_type]
    assert all(found.refused.values())
    assert set(found.roles) >= WHOLE - refused


def test_the_scalar_of_a_layer_scales_what_its_branches_give() -> None:
    """Gemma 4: (x + h) * s leaves a layer, where s is no 1 in trained models."""
    model = small_model("gemma4_text")
    for layer in model.layers:
        layer.layer_scalar.fill_(0.5)
    spec = discover(model, inputs_of(model))
    for layer in [
        one for layers in spec.layers for one in (layers.layer if isinstance(layers.layer, tuple) else (layers.layer,))
    ]:
        assert {"attn", "ffn", "ffn.up", "ffn.down", "layer"} <= set(layer.places) | {"layer"}
        assert not {"attn", "ffn"} & set(layer.refused)


def test_a_number_of_heads_that_the_keys_do_not_have_is_not_believed() -> None:
    """DeepSeek V4: all query heads read one key head, which no attribute tells; seen repeated, it is one at last."""
    with pytest.raises(UnsupportedError, match="keys of 8 heads"):
        per_head(torch.zeros(1, 8, 3, 4), 1)
    module = nn.Module()
    module.num_heads = 8
    assert told_number(module, queries=8, keys=1) is None
    assert told_number(module, queries=8, keys=8) == "num_heads"
    module.num_key_value_heads = 2
    assert told_number(module, queries=8, keys=2) == told_number(module, queries=8, keys=8) == "num_key_value_heads"


def test_a_padded_vocabulary_stays_larger_in_a_twin() -> None:
    small = shrunken(PreTrainedConfig(vocab_size=201_024, unpadded_vocab_size=200_058, src_vocab_size=201_024), 1)
    assert (small.vocab_size, small.src_vocab_size, small.unpadded_vocab_size) == (1024, 1024, 1023)


LATENT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 40,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


def latent(auto: Any = AutoModel) -> Any:
    """DeepSeek V3 whose keys are 12 wide and whose values are 6 wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(auto.from_config(AutoConfig.for_model("deepseek_v3", **LATENT)))


def test_a_prefix_stands_in_front_of_latent_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """[P_k; k] and [P_v; v] of different widths, behind what makes both of one latent vector and before any query."""
    model, ids, length = latent(), torch.arange(3, 17).reshape(2, 7), 3
    plain = copy.deepcopy(model)
    adapters.init(model)
    cores = [site for site in model._engine.sites if site.role == "attn.core"]
    assert [(site.num_heads, site.head_dim, site.value_dim, site.hidden_size) for site in cores] == [(4, 12, 6, 32)] * 2
    model.add_adapter("a", config=adapters.PrefixTuningConfig(flat=True, prefix_length=length), set_active=True)
    (numbers,) = adapter_parameters(model, "a").values()
    prefixes = numbers.detach().view(length, 2, 4 * (12 + 6)).unbind(1)
    for layer, prefix in zip(plain.layers, prefixes, strict=True):
        own = [part.view(length, 4, -1).transpose(0, 1)[None] for part in prefix.split((4 * 12, 4 * 6), 1)]
        expand = layer.self_attn.expand_kv

        def prefixed(*given: Tensor, expand: Any = expand, own: Any = own) -> tuple[Tensor, ...]:
            return tuple(torch.cat([p.expand(2, -1, -1, -1), x], 2) for p, x in zip(own, expand(*given), strict=True))

        monkeypatch.setattr(layer.self_attn, "expand_kv", prefixed)
    mask = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1)
    mask = nn.functional.pad(mask, (length, 0))[None, None].expand(2, 1, -1, -1)
    with torch.no_grad():
        expected = plain(ids, attention_mask=mask, use_cache=False).last_hidden_state
        torch.testing.assert_close(model(ids).last_hidden_state, expected)
        model.set_active_adapters(None)
        assert not torch.allclose(model(ids).last_hidden_state, expected)


def test_generation_with_latent_keys_is_what_it_is_without_a_cache() -> None:
    model = adapters.init(latent(AutoModelForCausalLM))
    model.add_adapter("a", config=adapters.PrefixTuningConfig(flat=True, prefix_length=3), set_active=True)
    ids = torch.arange(3, 13).reshape(2, 5)
    with_cache, without = (
        model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(with_cache, without)


TOKENS = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def fresh(model_type: str = "gpt_neox", **options: Any) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**sizes, **TOKENS, **options})
        return AutoModel.from_config(config)


def test_nothing_is_changed_by_looking() -> None:
    """Random numbers, modes, weights, hooks and the class of what was not given adapters."""
    model = fresh().train()
    model.layers[1].eval()
    modes, before, hooks = [m.training for m in model.modules()], state(model), hook_names(model)
    numbers = random.getstate(), torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    discover(model)
    discover(model, {"input_ids": torch.arange(8)[None]})
    assert [m.training for m in model.modules()] == modes and state(model) == before and hook_names(model) == hooks
    assert random.getstate() == numbers[0] and torch.equal(torch.random.get_rng_state(), numbers[1])
    assert (np.random.get_state()[1] == numbers[2]).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_model_itself_says_the_same_as_its_twin() -> None:
    model = fresh()
    assert discover(model, {"input_ids": torch.arange(8)[None]}) == discover(model)


def test_a_model_that_is_being_loaded_has_a_twin_whose_weights_are_tied(tmp_path: Path) -> None:
    """While `from_pretrained` builds, Transformers ties none."""
    config = AutoConfig.for_model("plbart", **{**BART, "scale_embedding": True})
    model = AutoModel.from_config(config)
    model.save_pretrained(tmp_path)
    loaded = AutoAdapterModel.from_pretrained(tmp_path)
    assert loaded._engine.spec == discover(model)
    assert loaded._engine.spec.places["embed"] == At("encoder.layernorm_embedding")


def test_a_large_model_needs_no_memory() -> None:
    """On the meta device: columns are those of the real widths."""
    with torch.device("meta"):
        model = fresh("phi3", hidden_size=3072, num_hidden_layers=2, num_attention_heads=32, intermediate_size=8192)
    spec = discover(model)
    layer = spec.layers[0].layer
    assert isinstance(layer, LayerSpec) and not layer.refused
    sites = {site.role: site for site in resolve(model, spec) if site.layer == 0}
    fused: Any = sites["attn.q+attn.k+attn.v"]
    assert [fused.columns[f"attn.{part}"].of_width(3 * 3072) for part in "qkv"] == [
        slice(i * 3072, (i + 1) * 3072) for i in range(3)
    ]


def test_attention_and_feed_forward_block_side_by_side_read_the_same_x() -> None:
    """A bottleneck with weights of 0 changes nothing in either branch."""
    model = adapters.init(fresh().eval())
    given = inputs_of(model)
    with torch.no_grad():
        expected = output(model, given)
        model.add_adapter("a", config=adapters.SeqBnConfig(places=["attn", "ffn"]), set_active=True)
        for name, parameter in model.named_parameters():
            if ".adapters.a." in name:
                parameter.zero_()
        torch.testing.assert_close(output(model, given), expected)


def test_what_is_scaled_before_it_is_added() -> None:
    """Adapters see what is added: as if the last linear map of each branch had made it so."""
    options = {"pad_token_id": 0, "embedding_multiplier": 1.0}
    model, plain = (fresh("granite", residual_multiplier=m, **options).eval() for m in (0.5, 1.0))
    for layer in plain.layers:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight.data.mul_(0.5)
    given = inputs_of(plain)
    with torch.no_grad():
        torch.testing.assert_close(output(model, given), output(plain, given))
        for one in (model, plain):
            adapters.init(one)
            one.add_adapter("a", config=adapters.SeqBnConfig(places=["attn", "ffn"], original_ln_after=False))
            one.set_active_adapters("a")
        perturb(model, "a")
        for name, parameter in adapter_parameters(plain, "a").items():
            parameter.copy_(adapter_parameters(model, "a")[name])
        torch.testing.assert_close(output(model, given), output(plain, given))


def test_a_branch_that_gives_its_states_flat() -> None:
    """Llama 4's experts give [B * S, D]: a bottleneck there reads h + x of each position."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
        widths = {"head_dim": 8, "intermediate_size": 40, "intermediate_size_mlp": 48, "num_local_experts": 2}
        config = AutoConfig.for_model("llama4_text", **sizes, **widths, **TOKENS)
        model = randomised(AutoModel.from_config(config))
    plain, ids = copy.deepcopy(model), torch.arange(3, 17).reshape(2, 7)
    adapters.init(model)
    config = adapters.SeqBnConfig(places=["ffn"], reduction_factor=4, non_linearity="relu", original_ln_before=True)
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a")
    down, up = (w for name, w in adapter_parameters(model, "a").items() if name.endswith("weight"))
    before, behind = (w for name, w in adapter_parameters(model, "a").items() if name.endswith("bias"))
    seen: list[Tensor] = []
    layer = plain.layers[0]
    layer.post_attention_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def added(module: nn.Module, args: Any, output: Any) -> Any:
        h = output[0].view(2, 7, 32)
        hidden = torch.relu(nn.functional.linear(h + seen[-1], down, before))
        return (h + nn.functional.linear(hidden, up, behind)).view(14, 32), output[1]

    layer.feed_forward.register_forward_hook(added)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).last_hidden_state, plain(ids).last_hidden_state)
    model.add_adapter("r", config=adapters.LoReftConfig(places="ffn"), set_active=True)
    perturb(model, "r")
    with torch.no_grad():
        both, alone = (model(rows).last_hidden_state for rows in (ids, ids[1:]))
        torch.testing.assert_close(both[1:], alone)
        model.set_active_adapters(None)
        changed = (both - model(ids).last_hidden_state).abs().amax(-1) > 1e-4
    assert changed[:, 0].all() and not changed[:, 3].all()


@pytest.mark.parametrize(
    ("mask", "columns"),
    [
        ("110000", Columns(0, 1, 3)),
        ("001100", Columns(1, 2, 3)),
        ("101010", Columns(0, 1, 2, 3)),
        ("011011", Columns(1, 3, 3, 2)),
        ("110100", None),
        ("000000", None),
    ],
)
def test_columns_are_read_from_a_mask(mask: str, columns: Columns | None) -> None:
    bits = [bit == "1" for bit in mask]
    found = as_columns(bits)
    assert found == columns
    if found is not None:
        chosen = found.of_width(len(bits))
        indices = list(range(len(bits))[chosen]) if isinstance(chosen, slice) else list(chosen)
        assert indices == [i for i, bit in enumerate(bits) if bit]


class TestCache:
    """What was found is kept in a folder, under a key of all that it depends on."""

    @pytest.fixture
    def folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setenv(cache.FOLDER, str(tmp_path))
        return tmp_path

    @pytest.fixture
    def traces(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Grows by one whenever a model is traced."""
        seen: list[str] = []
        trace = discovery.trace

        def counted(model: nn.Module, given: Any) -> Any:
            seen.append(type(model).__name__)
            return trace(model, given)

        monkeypatch.setattr(discovery, "trace", counted)
        return seen

    def test_a_model_is_traced_once(self, folder: Path, traces: list[str]) -> None:
        first = discover(fresh())
        assert discover(fresh()) == first and len(traces) == 1
        assert len(list(folder.iterdir())) == 1
        discover(fresh(num_hidden_layers=3))
        discover(fresh(use_parallel_residual=False))
        assert len(traces) == 3 and len(list(folder.iterdir())) == 3

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"is": "ModelSpec"}', '{"is": "At", "path": ""}', "\x00"])
    def test_a_damaged_file_is_as_none(self, folder: Path, traces: list[str], damage: str) -> None:
        first = discover(fresh())
        (file,) = folder.iterdir()
        whole = file.read_text(encoding="utf-8")
        file.write_text(damage, encoding="utf-8")
        assert discover(fresh()) == first and len(traces) == 2
        assert file.read_text(encoding="utf-8") == whole

    def test_what_no_longer_fits_is_found_again(
        self, folder: Path, traces: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        first = discover(fresh())
        (file,) = folder.iterdir()
        file.write_text(file.read_text(encoding="utf-8").replace("query_key_value", "qkv"), encoding="utf-8")
        with caplog.at_level(logging.WARNING, logger="adapters"):
            assert discover(fresh()) == first
            assert discover(fresh()) == first
        assert len(traces) == 2 and len(caplog.records) == 1
        assert "GPTNeoXModel" in caplog.text and "'attention.qkv'" in caplog.text

    def test_a_folder_that_cannot_be_written(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv(cache.FOLDER, str(tmp_path / "file"))
        assert discover(fresh()).layers

    def test_it_can_be_switched_off_and_stands_with_the_other_caches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert cache.folder() is None
        monkeypatch.delenv(cache.FOLDER)
        monkeypatch.setattr(cache.constants, "HF_HOME", "somewhere")
        assert cache.folder() == Path("somewhere/adapters/specs")

    @pytest.mark.parametrize("name", TINY_MODELS)
    def test_specs_are_read_as_they_were_written(self, name: str) -> None:
        spec = spec_for(build(name, adapted=False))
        assert isinstance(spec, ModelSpec)
        assert cache.from_data(copy.deepcopy(cache.as_data(spec))) == spec

    def test_a_model_that_has_adapters_is_the_same_to_it(self) -> None:
        model = fresh()
        assert cache.key(adapters.init(copy.deepcopy(model))) == cache.key(model) != cache.key(fresh(hidden_size=64))


def test_a_model_whose_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says at which module, and what to do; the model stays as it was."""
    monkeypatch.setattr(discovery, "twin", copy.deepcopy)
    model = fresh()
    model.layers[1].mlp.forward = _broken
    kind, before = type(model), state(model)
    told = r"(?s)input_ids \[2, 7\].* fails in layers\.1\.mlp \(GPTNeoXMLP\).*cannot.*example_inputs=.*Interface"
    with pytest.raises(UnsupportedError, match=told):
        adapters.init(model)
    assert type(model) is kind and state(model) == before and not hook_names(model)


def _broken(x: Tensor) -> Tensor:
    raise RuntimeError("cannot")


class Block(nn.Module):
    """A layer of a transformer, written plainly."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 40), nn.Linear(40, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2), -1) @ v)
        return x + self.narrow(torch.relu(self.wide(self.second(x))))  # type: ignore[no-any-return]


class Custom(PreTrainedModel):
    """Code of somebody's own, whose argument has a name that nobody can guess."""

    config_class = BertConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config.hidden_size) for _ in range(2))
        self.post_init()

    def forward(self, words: Tensor) -> Tensor:
        x: Tensor = self.table(words)
        for block in self.blocks:
            x = block(x)
        return x


def test_code_of_ones_own() -> None:
    """It asks for inputs, and with them finds everything."""
    config = BertConfig(hidden_size=16, vocab_size=32)
    config.model_type = "custom"
    model, words = Custom(config).eval(), torch.arange(6)[None]
    with pytest.raises(UnsupportedError, match=r"(?s)Custom has no description.*example_inputs="):
        adapters.init(model)
    adapters.init(model, example_inputs={"words": words})
    roles = {site.role for site in model._engine.sites if site.layer == 1}
    assert roles >= {"attn.q+attn.k+attn.v", "attn.o", "attn", "ffn.up", "ffn.down", "ffn", "layer"}
    with torch.no_grad():
        before = model(words)
        model.add_adapter("a", config="lora[places='attn.q+ffn.down',r=2]")
        model.add_adapter("b", config=adapters.SeqBnConfig(places=["attn", "ffn"], reduction_factor=2))
        perturb(model, "a", "b")
        for setup in ("a", "b"):
            model.set_active_adapters(setup)
            assert not torch.equal(model(words), before)
        model.set_active_adapters(None)
        assert torch.equal(model(words), before)


class Plain(nn.Module):
    """The same without Transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16) for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        for block in self.blocks:
            states = block(states)
        return states


def test_a_module_of_torch(tmp_path: Path) -> None:
    """Adapters act, train, are saved and loaded, and go."""
    with pytest.raises(UnsupportedError, match=r"example_inputs=.*got Plain"):
        adapters.init(Plain())
    states, other = torch.randn(2, 5, 16), Plain()
    plain = copy.deepcopy(other)
    model = adapters.init(plain, example_inputs={"states": states})
    expected = other(states)
    model.add_adapter("a", config="lora[places='attn.v+ffn.down',r=2]")
    perturb(model, "a")
    model.train_adapter("a")
    result = model(states)
    result.sum().backward()
    assert not torch.equal(result, expected)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(adapter_parameters(model, "a"))
    model.save_adapter(tmp_path, "a")
    twin = adapters.init(other, example_inputs={"states": states})
    twin.load_adapter(tmp_path, load_as="b", set_active=True)
    assert torch.equal(twin(states), result)
    assert torch.equal(copy.deepcopy(twin)(states), result)
    twin.delete_adapter("b")
    assert torch.equal(twin(states), expected) and not hook_names(twin)


def test_a_module_whose_config_is_something_else() -> None:
    module = Plain()
    module.config = {"width": 16}  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match="config of Plain is a dict"):
        adapters.init(module, example_inputs={"states": torch.randn(2, 5, 16)})
    assert type(module) is Plain


class Headed(nn.Module):
    """A model around a base model, whose inputs it makes."""

    base_model_prefix = "inner"

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table, self.head = Plain(), nn.Embedding(32, 16), nn.Linear(16, 2)

    def forward(self, words: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.inner(self.table(words))[:, 0]), labels)


def test_what_a_base_model_is_given_by_its_root() -> None:
    model, words = Headed(), torch.arange(10).reshape(2, 5)
    given = {"words": words, "labels": torch.tensor([0, 1])}
    assert discover(model.inner, given, model) == discover(model.inner, {"states": model.table(words).detach()})
    with pytest.raises(
        UnsupportedError, match=r"(?s)given to Plain in .* of Headed with words \[2, 5\]: TypeError.*labels"
    ):
        discover(model.inner, {"words": words}, model)
    assert not hook_names(model)
