"""Can heads be added, activated, combined, averaged, tied and removed, and are mistakes refused?"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from adapters.composition.blocks import BatchSplit, Parallel, Stack
from adapters.heads import MultiHeadOutput, registry
from adapters.heads.pooling import last_token
from adapters.heads.registry import register_custom_head
from adapters.runtime.active import AdapterSetup
from tests.heads.custom import Custom
from tests.heads.models import EOS, VOCAB, WIDTH, add_head, inputs_for, tiny


def two_heads(model_type: str = "bert") -> Any:
    model = tiny(model_type)
    for name in ("a", "b"):
        add_head(model, "classification", name)
    return model


def test_adding_activates_and_sets_labels() -> None:
    model = tiny("bert")
    model.add_classification_head("x", num_labels=2, id2label={0: "no", 1: "yes"})
    assert model.active_head == "x"
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.get_labels() == ["no", "yes"]
    model.add_tagging_head("y", num_labels=3, set_active=False)
    assert model.active_head == "x"
    assert model.get_labels_dict("y") == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    model.active_head = "y"
    assert model.config.num_labels == 3
    model.add_masked_lm_head("z")
    assert model.get_labels() is None
    assert model.config.num_labels == 3


def test_names() -> None:
    model = two_heads()
    with pytest.raises(ValueError, match="already"):
        model.add_classification_head("a")
    before = model.heads["a"]
    model.add_classification_head("a", overwrite_ok=True)
    assert model.heads["a"] is not before
    for bad in ("", "a.b", "values"):
        with pytest.raises(ValueError, match="cannot be called"):
            model.add_classification_head(bad)
    with pytest.raises(ValueError, match="Allowed: a, b"):
        model.active_head = "c"


def test_unsupported_type() -> None:
    with pytest.raises(ValueError, match="does not support head type 'masked_lm'"):
        tiny("gpt2").add_masked_lm_head("h")


def test_delete() -> None:
    model = two_heads()
    model.active_head = ["a", "b"]
    model.delete_head("a")
    assert model.active_head is None
    assert list(model.heads) == list(model.config.prediction_heads) == ["b"]
    model.delete_head("a")


def test_config_is_not_changed() -> None:
    model = two_heads()
    config = copy.deepcopy(model.heads["a"].config)
    model.add_prediction_head_from_config("c", config)
    assert config == model.heads["a"].config == model.heads["c"].config
    with pytest.raises(ValueError, match="no 'head_type'"):
        model.add_prediction_head_from_config("d", {})
    with pytest.raises(ValueError, match="Did you mean 'layers'"):
        model.add_prediction_head_from_config("d", {"head_type": "tagging", "layer": 1})
    with pytest.raises(AttributeError, match="Unknown head type"):
        model.add_prediction_head_from_config("d", {"head_type": "taging"})


def test_two_models_of_one_config_do_not_share_heads() -> None:
    model = two_heads()
    again = type(model)(model.config)
    again.delete_head("a")
    assert list(model.config.prediction_heads) == ["a", "b"]


def test_priority_of_heads() -> None:
    model = two_heads()
    inputs = inputs_for(model)
    for name in ("x", "a"):
        model.add_adapter(name, config="lora")  # new ones change nothing
    each = {name: model(**inputs, head=name).logits for name in ("a", "b")}
    assert torch.equal(model(**inputs).logits, each["b"])
    with AdapterSetup("x"):
        assert torch.equal(model(**inputs).logits, each["b"])
    with AdapterSetup("x", head_setup="a"):
        assert torch.equal(model(**inputs).logits, each["a"])
        assert torch.equal(model(**inputs, head="b").logits, each["b"])
    with AdapterSetup("a"):
        assert torch.equal(model(**inputs).logits, each["a"])
    with AdapterSetup("x", head_setup="nowhere"), pytest.raises(ValueError, match="nowhere"):
        model(**inputs)


def test_no_head_gives_the_base_output() -> None:
    model = tiny("bert")
    inputs = inputs_for(model)
    out, base = model(**inputs, labels=None), model.bert(**inputs)
    assert type(out) is type(base)
    assert torch.equal(out.last_hidden_state, base.last_hidden_state)
    assert isinstance(model(**inputs, return_dict=False), tuple)


def test_list_of_heads() -> None:
    model = two_heads()
    inputs = inputs_for(model)
    each = [model(**inputs, head=name).logits for name in ("a", "b")]
    model.active_head = ["a", "b"]
    out = model(**inputs, labels=torch.tensor([0, 1]))
    assert isinstance(out, MultiHeadOutput)
    assert len(out) == 2
    assert out.loss is None
    for one, want in zip(out, each, strict=True):
        assert torch.equal(one.logits, want)
    assert torch.equal(out.logits, torch.vstack(each))
    assert out[1] is out.head_outputs[1]
    with pytest.raises(ValueError, match="Say which one"):
        model.get_labels()


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_batch_split(model_type: str) -> None:
    model = two_heads(model_type)
    inputs, labels = inputs_for(model, rows=4), torch.tensor([0, 1, 2, 0])
    each = [model(**inputs, head=name).logits for name in ("a", "b")]
    heads = BatchSplit("a", "b", batch_sizes=[1, 3])
    model.active_head = heads
    assert model.active_head == heads
    out = model(**inputs, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(out[0].logits, each[0][:1])
    torch.testing.assert_close(out[1].logits, each[1][1:])
    torch.testing.assert_close(out["loss"], out[0].loss + out[1].loss)
    torch.testing.assert_close(out[1].loss, nn.functional.cross_entropy(each[1][1:], labels[1:]))
    states = out[1].get("hidden_states") or out[1]["decoder_hidden_states"]
    assert states[0].size(0) == 3
    with pytest.raises(ValueError, match="add up to 4"):
        model(**inputs_for(model, rows=2))


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "bart", "mbart"])
def test_parallel(model_type: str) -> None:
    model = two_heads(model_type)
    inputs, labels = inputs_for(model), torch.tensor([0, 1])
    for name in ("a", "b"):
        model.add_adapter(name, config="lora")
        for key, parameter in model.named_parameters():
            if f".{name}.lora_" in key:
                nn.init.normal_(parameter, std=0.5)
    each = []
    for name in ("a", "b"):
        model.set_active_adapters(name)
        assert model.active_head == name
        each.append(model(**inputs, labels=labels))
    model.set_active_adapters(Parallel("a", "b"))
    assert model.active_head == ["a", "b"]
    out = model(**inputs, labels=labels)
    for one, want in zip(out, each, strict=True):
        torch.testing.assert_close(one.logits, want.logits)
        torch.testing.assert_close(one.loss, want.loss)
    torch.testing.assert_close(out.loss, each[0].loss + each[1].loss)
    model.active_head = "a"
    assert model(**inputs, labels=labels).logits.shape == (4, 3)
    model.active_head = ["a"]
    with pytest.raises(ValueError, match="one head per child"):
        model(**inputs)


def test_set_up_activates_only_heads_that_exist() -> None:
    model = two_heads()
    model.add_adapter("x", config="lora")
    model.set_active_adapters("x")
    assert model.active_head == "b"
    model._activate_heads_for(Parallel("x", "a"))
    assert model.active_head == "b"
    model._activate_heads_for(Stack("x", BatchSplit("a", "b", batch_sizes=1)))
    assert model.active_head == BatchSplit("a", "b", batch_sizes=1)


def test_average() -> None:
    model = two_heads()
    model.average_head("c", ["a", "b"], weights=[1.0, 3.0])
    assert model.active_head == "b"
    for key, tensor in model.heads["c"].state_dict().items():
        want = 0.25 * model.heads["a"].state_dict()[key] + 0.75 * model.heads["b"].state_dict()[key]
        torch.testing.assert_close(tensor, want)
    model.average_head("d", {"a": 1.0, "b": 3.0}, set_active=True)
    torch.testing.assert_close(model.heads["d"][1].weight, model.heads["c"][1].weight)
    add_head(model, "tagging", "t")
    for heads, match in ((["a", "t"], "differ"), ([], "at least one"), (["a", "no"], "no head")):
        with pytest.raises(ValueError, match=match):
            model.average_head("e", heads)
    assert "e" not in model.heads


def test_average_of_tied_heads_stays_tied() -> None:
    model = tiny("bert")
    for name in "abc":
        add_head(model, "masked_lm", name)
    model.average_head("m", list("abc"))
    assert model.heads["m"][3].weight is model.get_input_embeddings().weight


def test_custom_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt2")
    with pytest.raises(AttributeError, match="register_custom_head"):
        model.add_custom_head("mine", "h")
    model.register_custom_head("mine", Custom)
    model.add_custom_head("mine", "h", size=4)
    out = model.eval()(**inputs_for(model), anything=1)
    assert out[0].shape == (2, 4)
    assert model.heads["h"].seen == ["anything"]
    assert model.heads["h"].config["head_type"] == "mine"
    monkeypatch.setattr(registry, "CUSTOM_HEADS", {})
    register_custom_head("yours", lambda model, name, **config: Custom(model, name))
    tiny("bert").add_custom_head("yours", "h")
    with pytest.raises(ValueError, match="built-in"):
        register_custom_head("tagging", Custom)


def test_unknown_arguments_are_refused() -> None:
    model = two_heads()
    with pytest.raises(TypeError, match="Did you mean 'labels'"):
        model(**inputs_for(model), label=1)


def test_tied_output_embeddings(tmp_path: Any) -> None:
    model = tiny("bert")
    head = add_head(model, "masked_lm")
    embeddings = model.get_input_embeddings()
    assert head.get_output_embeddings().weight is embeddings.weight
    assert model.get_output_embeddings() is head[3]
    assert model._output_embedding_modules() == [head[3]]
    assert model.all_tied_weights_keys["heads.h.3.weight"] == "bert.embeddings.word_embeddings.weight"
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.heads["h"][3].weight is again.get_input_embeddings().weight
    assert tiny("llama").add_causal_lm_head("h") is None
    untied = tiny("llama", tie_word_embeddings=False)
    assert not add_head(untied, "causal_lm").tied
    assert not add_head(tiny("electra"), "masked_lm", layers=1).state_dict()["0.weight"].is_meta


def test_loading_does_not_write_into_the_embeddings() -> None:
    model = tiny("bert")
    head = add_head(model, "masked_lm")
    before = model.get_input_embeddings().weight.clone()
    state = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    head.load_state_dict(state)
    assert head.tied
    state["3.weight"] += 1
    head.load_state_dict(state)
    assert not head.tied
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert torch.equal(head[3].weight, before + 1)
    assert model.get_expanded_tied_weights_keys() == {}


def test_resizing_embeddings_resizes_the_active_head() -> None:
    model = tiny("bert")
    add_head(model, "masked_lm")
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    assert model.heads["h"].config["vocab_size"] == VOCAB + 3
    assert model(**inputs_for(model)).logits.size(-1) == VOCAB + 3
    assert model.heads["h"][3].weight is model.get_input_embeddings().weight


def test_replacing_output_embeddings() -> None:
    model = tiny("bert")
    add_head(model, "classification")
    assert model.get_output_embeddings() is None
    with pytest.raises(ValueError, match="0 active"):
        model.set_output_embeddings(nn.Linear(WIDTH, 5))
    with pytest.raises(ValueError, match="no output embeddings"):
        model.heads["h"].set_output_embeddings(nn.Linear(WIDTH, 5))


def test_inverse_is_hooked_onto_heads_in_any_order() -> None:
    inputs = inputs_for(tiny("bert"))
    results = []
    for head_first in (True, False):
        model = tiny("bert")
        torch.manual_seed(1)
        if head_first:
            add_head(model, "masked_lm")
            model.add_adapter("a", config="seq_bn_inv")
        else:
            model.add_adapter("a", config="seq_bn_inv")
            add_head(model, "masked_lm")
        for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(index))
        model.set_active_adapters("a")
        results.append(model(**inputs).logits)
    assert torch.equal(*results)
    with AdapterSetup(None):
        assert not torch.allclose(results[0], model(**inputs).logits)


def test_last_token() -> None:
    config = tiny("gpt2").config
    states = torch.arange(12.0).view(2, 6, 1)

    def last(states: torch.Tensor, inputs: dict[str, torch.Tensor]) -> list[float]:
        return last_token(config, ModelOutput(last_hidden_state=states), inputs).view(-1).tolist()

    ids = torch.tensor([[5, 1, 6, EOS, 1, 1], [1, 1, 5, 6, 7, EOS]])
    assert last(states, {"input_ids": ids}) == [2.0, 11.0]
    assert last(states.repeat(2, 1, 1), {"input_ids": ids}) == [2.0, 11.0] * 2
    longer = torch.cat([torch.zeros(2, 3, 1), states], 1)
    assert last(longer, {"input_ids": ids}) == [2.0, 11.0]
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6])
    assert last(states, {"attention_mask": mask}) == [2.0, 11.0]
    config.pad_token_id = None
    assert last(states, {"input_ids": ids}) == [5.0, 11.0]


def test_eos_is_needed() -> None:
    model = tiny("bart")
    add_head(model, "classification")
    inputs = inputs_for(model)
    with pytest.raises(ValueError, match="decoder_input_ids out"):
        model(**inputs, decoder_input_ids=inputs["input_ids"][:, :3])
    inputs["input_ids"][0, 3] = EOS
    with pytest.raises(ValueError, match="same number of <eos>"):
        model(**inputs)
    model.add_qa_head("q")
    model(**inputs)


def test_copies_are_independent() -> None:
    model = tiny("bert")
    add_head(model, "masked_lm")
    twin = copy.deepcopy(model)
    inputs = inputs_for(model)
    want = model(**inputs).logits
    with torch.no_grad():
        twin.heads["h"][0].weight.zero_()
    assert torch.equal(model(**inputs).logits, want)
    assert twin.heads["h"][3].weight is twin.get_input_embeddings().weight
