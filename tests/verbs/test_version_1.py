"""Do verbs mean what code written for version 1 of the library expects of them?"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import adapters
from adapters import AdapterSetup, AutoAdapterModel, BatchSplit, Fuse, IA3Config, MultiTask, SeqBnConfig
from adapters.checkpoint.layout import ADAPTER, FUSION, HEAD
from adapters.composition import Split, adjust_tensors_for_parallel, adjust_tensors_for_parallel_
from adapters.errors import CheckpointError, CompositionError, ConfigError, SizeError
from adapters.methods import METHODS
from adapters.methods.bottleneck import BottleneckLayer
from adapters.methods.lora import LoRALayer
from tests.heads.models import CONFIGS, add_head
from tests.heads.models import tiny as flexible
from tests.tiny import TINY_MODELS, build, config, infer, inputs, perturb

COMPACTER = "compacter[phm_dim=2,reduction_factor=8]"


def adapted(name: str = "bert", task: str = "base", **methods: str) -> Any:
    model = build(name, task)
    for number, (adapter, method) in enumerate(methods.items()):
        model.add_adapter(adapter, config=method)
        perturb(model, adapter, seed=number)
    return model


# Layers and listings


@pytest.mark.parametrize("name", TINY_MODELS)
def test_layers_are_listed_with_what_carries_adapters(name: str) -> None:
    model = adapted(name, "classification", b="seq_bn", l="lora")
    layers = dict(model.iter_layers())
    assert list(layers) == list(range(4 if TINY_MODELS[name].kind == "encoder-decoder" else 2))
    for number, modules in model.get_adapter("l").items():
        assert {*modules["selfattn_lora"].parameters()} <= {*layers[number].parameters()}
    seen: list[tuple[int, Any]] = []
    model.base_model.apply_to_adapter_layers(lambda number, module: seen.append((number, module)))
    assert {number for number, _ in seen} == set(layers)
    assert {isinstance(m, LoRALayer) and "l" in m.loras for _, m in seen} == {True, False}
    assert {isinstance(m, BottleneckLayer) and "b" in m.adapters for _, m in seen} == {True, False}


def test_what_does_not_exist_has_no_modules() -> None:
    assert build("bert").get_adapter("x") == {}


@pytest.mark.parametrize("method", ["prefix_tuning", "prefix_tuning_flat", "prefix_tuning[use_gating=True]"])
@pytest.mark.parametrize("name", ["bert", "bart"])
def test_every_parameter_is_listed_once(name: str, method: str) -> None:
    model = adapted(name, p=method)
    listed = [p for places in model.get_adapter("p").values() for m in places.values() for p in m.parameters()]
    of_adapter = [p for key, p in model.named_parameters() if ".p." in key]
    assert {id(p) for p in listed} == {id(p) for p in of_adapter}
    assert len(listed) == len(of_adapter)


def test_labels_of_plain_classes() -> None:
    model = build("bert", "classification")
    assert model.get_labels() == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert model.bert.get_labels_dict() == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_other_names_of_arguments() -> None:
    model = flexible("bert")
    for name in "ab":
        model.add_classification_head(name, num_labels=2)
    model.average_head("avg", head_list=["a", "b"])
    model.average_head("same", ["a", "b"])
    assert torch.equal(model.heads["avg"][1].weight, model.heads["same"][1].weight)
    assert model.get_labels(head_name="a") == model.get_labels("a") == ["LABEL_0", "LABEL_1"]


# Sharing and freezing


@pytest.mark.parametrize("given", [MultiTask("s", "t"), ["t", "s"], "s,t", "shared"])
def test_what_multi_task_adapters_share_is_found_by_them(given: Any) -> None:
    model = adapted(s="mtl_lora", t="mtl_lora")
    model.share_parameters(MultiTask("s", "t"), name="shared")
    first, second = (model.get_adapter(name)[0]["selfattn_lora"][0] for name in "st")
    assert first.lora_A is second.lora_A
    model.unshare_parameters(given)
    assert first.lora_A is not second.lora_A
    model.share_parameters(adapter_names=["s", "t"], name="again")
    model.unshare_parameters(adapter_names=["s", "t"], name="again")
    with pytest.raises(ValueError, match="no shared parameters"):
        model.unshare_parameters(given)


def test_shared_parameters_can_be_given() -> None:
    model = adapted(a=COMPACTER, l="lora")
    model.set_active_adapters("a")
    shared = model.base_model.shared_parameters["a"]
    other, before = copy.deepcopy(shared), infer(model, inputs("bert"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    model.set_shared_parameters({"a": other})
    assert all(map(torch.equal, shared.parameters(), other.parameters()))
    assert not torch.equal(infer(model, inputs("bert")), before)
    for wrong in ({"l": other}, {"x": other}, {"a": torch.nn.Linear(2, 2)}):
        with pytest.raises(ValueError):
            model.set_shared_parameters(wrong)


def test_embeddings_are_frozen_by_themselves() -> None:
    model = build("bert", "classification")
    model.freeze_embeddings()
    assert not model.get_input_embeddings().weight.requires_grad
    model.bert.freeze_embeddings(False)
    assert model.get_input_embeddings().weight.requires_grad


# Configs and blocks


def test_layers_may_be_strings() -> None:
    assert SeqBnConfig(leave_out=["0", "1"]) == SeqBnConfig(leave_out=[0, 1])
    with pytest.raises(ConfigError, match="leave_out"):
        SeqBnConfig(leave_out=["first"])


def test_ia3_takes_a_dropout_that_it_does_not_have() -> None:
    with pytest.warns(UserWarning, match="dropout does nothing"):
        given = IA3Config(dropout=0.1)
    model = build("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter("a", config=given, set_active=True)
    perturb(model, "a")
    given_to, x = infer(model, inputs("bert")), inputs("bert")
    assert torch.equal(infer(model.train(), x), given_to)  # the tiny model itself has no dropout


def test_a_factor_that_is_missing_is_a_key_error() -> None:
    model = build("bert")
    with pytest.raises(KeyError, match="no entry for layer 1") as caught:
        model.add_adapter("a", config=SeqBnConfig(reduction_factor={"0": 4}))
    assert isinstance(caught.value, ConfigError)
    assert not model.has_adapters()


@pytest.mark.parametrize("block", [BatchSplit("a", "b", batch_sizes=[1, 1]), Split("a", "b", splits=[1, 1])])
def test_sizes_that_do_not_add_up_are_index_errors(block: Any) -> None:
    model = adapted(a="seq_bn", b="seq_bn")
    model.set_active_adapters(block)
    with pytest.raises(IndexError, match="cover 2") as caught:
        infer(model, inputs("bert"))
    assert isinstance(caught.value, SizeError) and isinstance(caught.value, CompositionError)


@pytest.mark.parametrize("method", sorted(name for method in METHODS for name in [*method.presets][:1]))
def test_a_share_of_no_rows(method: str) -> None:
    """The other adapter has all rows, as if it was alone; in both places of the block."""
    model, x = build("bert"), inputs("bert")
    options = "[phm_dim=2,reduction_factor=8]" if "compacter" in method else ""
    try:
        model.add_adapter("a", config=f"{method}{options}")
    except ValueError:
        pytest.skip("needs other sizes than the tiny model's")
    model.add_adapter("b", config="seq_bn")
    for number, name in enumerate("ab"):
        perturb(model, name, seed=number)
    for name, setups in {
        "a": (BatchSplit("a", "b", batch_sizes=[4, 0]), BatchSplit("b", "a", batch_sizes=[0, 4])),
        "b": (BatchSplit("a", "b", batch_sizes=[0, 4]), BatchSplit("b", "a", batch_sizes=[4, 0])),
    }.items():
        with AdapterSetup(name):
            alone = infer(model, x)
        for setup in setups:
            try:
                model.set_active_adapters(setup)
            except CompositionError:
                pytest.skip("no part of BatchSplit")
            torch.testing.assert_close(infer(model, x), alone, rtol=1e-4, atol=1e-4)


def test_a_head_of_no_rows_has_no_part_in_the_loss() -> None:
    model, x = flexible("bert"), {"input_ids": torch.randint(5, 30, (4, 6))}
    for name in "ab":
        model.add_adapter(name, config="lora")
        model.add_classification_head(name, num_labels=2)
    labels = torch.tensor([0, 1, 0, 1])
    model.set_active_adapters("a")
    alone = model(**x, labels=labels)
    model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[4, 0]))
    out = model(**x, labels=labels)
    torch.testing.assert_close(out.loss, alone.loss)
    torch.testing.assert_close(out[0].logits, alone.logits)
    assert out[1].logits.shape == (0, 2)


def test_a_fusion_that_could_never_act_is_refused_when_it_is_added() -> None:
    model = adapted(a="seq_bn", b="double_seq_bn")
    with pytest.raises(ConfigError, match="only 'b' of them acts there"):
        model.add_adapter_fusion(Fuse("a", "b"))
    assert not model._engine.owned["fusion"]


def test_rows_for_layers_that_are_called_alone() -> None:
    hidden, mask = torch.zeros(6, 2), torch.arange(2.0)[:, None]
    copied, none, same = adjust_tensors_for_parallel(hidden, mask, None, hidden)
    assert copied is not None and copied.flatten().tolist() == [0, 1, 0, 1, 0, 1]
    assert none is None and same is hidden
    adjust_tensors_for_parallel_(hidden, mask, None)
    assert torch.equal(mask, copied)
    with pytest.raises(CompositionError, match="no multiple"):
        adjust_tensors_for_parallel(hidden, torch.zeros(4, 1))


def test_reft_in_fused_unions_of_version_1_is_refused(tmp_path: Path) -> None:
    """There the first child's acted, and the others were ignored."""
    union = adapters.ConfigUnion(adapters.SeqBnConfig(), adapters.LoReftConfig())
    model = build("bert")
    for name in "ab":
        model.add_adapter(name, config=union)
        model.save_adapter(tmp_path / name, name)
    model.add_adapter_fusion("a,b")
    model.save_adapter_fusion(tmp_path / "f", "a,b", use_safetensors=False)
    tensors = torch.load(tmp_path / "f" / FUSION.pickle, weights_only=True)
    torch.save({k: t for k, t in tensors.items() if ".output." in k}, tmp_path / "f" / FUSION.pickle)
    for name, layout in (("a", ADAPTER), ("b", ADAPTER), ("f", FUSION)):
        data = json.loads((tmp_path / name / layout.config).read_text())
        (tmp_path / name / layout.config).write_text(json.dumps({**data, "version": "adapters.1.3.0"}))
    other = build("bert")
    for name in "ab":
        other.load_adapter(tmp_path / name)
    other.load_adapter_fusion(tmp_path / "f")
    with pytest.raises(CompositionError, match=r"\(ReFT\) acts.*add it anew"):
        other.set_active_adapters(Fuse("a", "b"))
    other.add_adapter_fusion(Fuse("a", "b"), overwrite_ok=True, set_active=True)


def test_interfaces_change_until_they_are_used() -> None:
    model = build("bert", adapted=False)
    interface = adapters.AdapterModelInterface(
        adapter_methods=["lora"],
        model_embeddings="embeddings",
        model_layers="encoder.layer",
        layer_self_attn="attention",
        layer_cross_attn=None,
        attn_q_proj="self.query",
        attn_k_proj="self.key",
        attn_v_proj="self.wrong",
        attn_o_proj="output.dense",
        layer_intermediate_proj="intermediate.dense",
        layer_output_proj="output.dense",
    )
    interface.attn_qkv_proj = "self.query"
    with pytest.raises(ConfigError, match="either attn_qkv_proj or all"):
        adapters.init(model, interface=interface)
    interface.attn_qkv_proj, interface.attn_v_proj = None, "self.value"
    adapters.init(model, interface=interface)
    interface.attn_v_proj = "self.query"
    assert model._engine.interface.attn_v_proj == "self.value"
    model.add_adapter("a", config="lora")
    assert "loras" in model.encoder.layer[0].attention.self.value._modules


# Calls and files


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("vit", "gpt2")])
def test_token_types_of_one_kind_change_nothing(name: str) -> None:
    """Also where the base model does not know any. (GPT-2's are tokens.)"""
    model = flexible(name)
    given = {"input_ids": torch.randint(5, 30, (2, 6))}
    types = torch.zeros(2, 6, dtype=torch.long)
    torch.testing.assert_close(infer(model, given, token_type_ids=types), infer(model, given))


def test_a_base_model_without_cache_generates() -> None:
    model = AutoAdapterModel.from_config(config("distilbert", bos_token_id=0)).eval()
    model.add_causal_lm_head("lm")
    model.add_adapter("a", config="seq_bn", set_active=True)
    perturb(model, "a")
    given = expected = torch.randint(5, 60, (2, 4), generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        best = infer(model, {"input_ids": expected})[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, best], 1)
    found = model.generate(given, max_new_tokens=4, do_sample=False, pad_token_id=1, eos_token_id=None)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "task", "add"),
    [
        ("t5", "seq2seq lm", {"head_type": "seq2seq_lm"}),
        ("t5-gated", "seq2seq lm", {"head_type": "seq2seq_lm"}),
        ("bart", "seq2seq lm", {"head_type": "seq2seq_lm"}),
        ("bert", "masked lm", {"head_type": "masked_lm"}),
        ("bert", "classification", {"head_type": "classification", "layers": 1, "use_pooler": True, "num_labels": 3}),
        ("gpt2", "causal lm", {"head_type": "causal_lm", "layers": 1, "activation_function": None, "bias": False}),
    ],
)
def test_weights_of_plain_classes_go_into_flexible_models(name: str, task: str, add: dict[str, Any]) -> None:
    plain, given = build(name, task, adapted=False), inputs(name, task)
    model = AutoAdapterModel.from_config(plain.config).eval()
    add = {"activation_function": None, **add} if add["head_type"] == "classification" else add
    add = {"layer_norm": False, **add} if add["head_type"] == "causal_lm" else add
    model.add_prediction_head_from_config("h", add)
    state = plain.state_dict()
    model.load_state_dict(state, strict="bert.pooler.dense.weight" in state or name != "bert")
    torch.testing.assert_close(infer(model, given), infer(plain, given), rtol=1e-4, atol=1e-5)


def test_auto_classes_open_whole_models(tmp_path: Path) -> None:
    model, given = adapted(a="lora"), inputs("bert")
    model.save_pretrained(tmp_path)
    model.set_active_adapters("a")
    loaded = adapters.load_model(tmp_path, AutoAdapterModel).eval()
    assert type(loaded).__name__ == "BertAdapterModel"
    loaded.set_active_adapters("a")
    torch.testing.assert_close(infer(loaded, given), infer(model, given))


def test_both_files_are_written_on_request(tmp_path: Path) -> None:
    model = flexible("bert")
    model.add_adapter("a", config="lora")
    add_head(model, "classification", "a")
    model.save_adapter(tmp_path, "a", use_safetensors="both")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {*ADAPTER.files, *HEAD.files}
    for safe in (True, False):
        other = flexible("bert")
        other.load_adapter(tmp_path, use_safetensors=safe)
        pairs = zip(model.get_adapter_state_dict("a").items(), other.get_adapter_state_dict("a").items(), strict=True)
        assert all(key == twin and torch.equal(t, u) for (key, t), (twin, u) in pairs)
    model.save_adapter(tmp_path, "a")
    assert {path.name for path in tmp_path.iterdir()} == files - {ADAPTER.pickle, HEAD.pickle}
    with pytest.raises(CheckpointError, match="'both'"):
        model.save_adapter(tmp_path / "new", "a", use_safetensors="all")


@pytest.mark.parametrize("source", ["hf", "ah", "local", None])
def test_a_folder_is_taken_whatever_the_source(tmp_path: Path, source: str | None) -> None:
    adapted(a="lora").save_adapter(tmp_path, "a")
    assert build("bert").load_adapter(tmp_path, source=source) == "a"


def test_a_head_beside_a_fusion_keeps_its_name(tmp_path: Path) -> None:
    model = flexible("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    model.add_adapter_fusion("a,b")
    for head in ("own", "a,b"):
        add_head(model, "classification", head)
        model.save_adapter_fusion(tmp_path / head, "a,b", with_head=head)
        model.delete_head(head)
    for head, name in (("own", "own"), ("a,b", "f")):
        model.load_adapter_fusion(tmp_path / head, load_as="f")
        assert list(model.heads) == [name]
        model.delete_head(name)
        model.delete_adapter_fusion("f")


def test_a_comma_in_a_stored_name_is_replaced_and_said(tmp_path: Path, caplog: Any) -> None:
    model = adapted(ab="lora")
    model.save_adapter(tmp_path, "ab", use_safetensors=False)
    data = json.loads((tmp_path / ADAPTER.config).read_text())
    (tmp_path / ADAPTER.config).write_text(json.dumps({**data, "name": "a,b"}))
    tensors = torch.load(tmp_path / ADAPTER.pickle, weights_only=True)
    torch.save({key.replace(".ab.", ".a,b."): t for key, t in tensors.items()}, tmp_path / ADAPTER.pickle)
    other = build("bert")
    with caplog.at_level(logging.WARNING):
        assert other.load_adapter(tmp_path) == "a_b"
    assert [record.message for record in caplog.records if "comma" in record.message] == [
        "Adapter 'a,b' is loaded as 'a_b': a name cannot have a comma here. load_as gives it another."
    ]
    want = list(model.get_adapter_state_dict("ab").values())
    assert all(map(torch.equal, other.get_adapter_state_dict("a_b").values(), want))
    assert build("bert").load_adapter(tmp_path, load_as="c") == "c"


def test_a_config_in_place_of_a_flag_changes_nothing() -> None:
    model = adapted(a="lora")
    before = {key: p.requires_grad for key, p in model.named_parameters()}
    with pytest.raises(ConfigError, match="train_embeddings"):
        model.train_adapter("a", SeqBnConfig())
    assert {key: p.requires_grad for key, p in model.named_parameters()} == before
    assert not model.model_frozen and model.active_adapters is None
