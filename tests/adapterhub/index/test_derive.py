"""Records against the files they come from."""

import asyncio
import json

import pytest
from transformers import BertConfig

import adapters
from adapterhub.facts import configs
from adapterhub.facts.taxonomy import Taxonomy, canonical_metric, higher_is_better
from adapterhub.index.derive import derive
from adapters.methods.trainable_tokens import TrainableTokensConfig
from tests.adapterhub.index.files import MemoryFiles, safetensors

CARD = """---
tags: [adapter-transformers, "adapterhub:sentiment/sst-2"]
datasets: [glue/sst2]
language: [no]
license: apache-2.0
base_model: bert-base-uncased
dependencies:
- key: "@ukp/no_wiki"
  description: below it
results:
- {dataset: rotten_tomatoes, split: test, metric: Acc, value: 0.88}
- {metric: F1, value: 90.5}
---
# Film reviews

Tells *good* from bad. Trained for an hour.
"""


def derived(**contents):
    files = {
        name.replace("__", "."): data if isinstance(data, bytes) else data.encode() for name, data in contents.items()
    }
    return asyncio.run(derive(MemoryFiles(files)))


def adapter_config(config, **more):
    facts = {
        "model_name": "bert-base-uncased",
        "model_type": "bert",
        "model_class": "BertAdapterModel",
        "hidden_size": 8,
    }
    return json.dumps({"config": config, **facts, **more})


def test_bottleneck_with_head_and_card():
    config = {
        "mh_adapter": False,
        "output_adapter": True,
        "reduction_factor": {"default": 4, "1": 2},
        "non_linearity": "relu",
    }
    weights = safetensors({f"bert.encoder.layer.{i}.output.adapters.a.adapter_down.0.weight": (2, 8) for i in (0, 3)})
    record = derived(
        README__md=CARD,
        adapter_config__json=adapter_config(config),
        head_config__json=json.dumps({"config": {"head_type": "classification"}}),
        adapter__safetensors=weights,
    )
    assert (record.library, record.method, record.reduction_factor, record.non_linearity) == (
        "adapters",
        "bottleneck",
        4.0,
        "relu",
    )
    assert (record.type, record.task, record.subtask) == ("text_task", "sentiment", "sst-2")
    assert (record.base_model, record.model_type, record.hidden_size, record.layers) == (
        "bert-base-uncased",
        "bert",
        8,
        4,
    )
    assert (record.parameters, record.bytes) == (32, len(weights))
    assert (record.head_type, record.pipeline_tag) == ("classification", "text-classification")
    assert (record.title, record.summary) == ("Film reviews", "Tells good from bad.")
    assert record.languages == ["no"]
    assert record.dependencies == {"@ukp/no_wiki": "below it"}
    assert [tuple(item) for item in record.evaluations] == [
        ("sentiment", "rotten_tomatoes", "rotten_tomatoes", "test", "accuracy", 0.88),
        ("sentiment", "sst-2", None, None, "f1", 90.5),
    ]
    assert {"adapters", "adapter-transformers", "bert", "no", "safetensors"} <= set(record.tags)
    assert {"dataset:glue/sst2", "license:apache-2.0", "adapterhub:sentiment/sst-2"} <= set(record.tags)
    assert {"base_model:bert-base-uncased", "base_model:adapter:bert-base-uncased"} <= set(record.tags)
    assert record.model_config["adapters"] == record.model_config["adapter_transformers"]
    assert record.model_config["adapters"]["model_name"] == "bert-base-uncased"


def test_peft():
    config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "gpt2", "task_type": "CAUSAL_LM"}
    weights = safetensors({f"base_model.model.transformer.h.{i}.attn.c_attn.lora_A.weight": (4, 16) for i in range(2)})
    record = derived(adapter_config__json=json.dumps(config), adapter_model__safetensors=weights)
    assert (record.library, record.method, record.rank) == ("peft", "lora", 4)
    assert (record.base_model, record.hidden_size, record.layers, record.parameters) == ("gpt2", 16, 2, 128)
    assert (record.library_name, record.pipeline_tag) == ("peft", "text-generation")
    assert record.model_config == {"peft": {"base_model_name_or_path": "gpt2", "task_type": "CAUSAL_LM"}}


def test_a_language_adapter_stands_among_languages():
    record = derived(README__md="---\ntags: ['adapterhub:no/cc100']\n---\n")
    assert (record.type, record.task, record.subtask) == ("text_lang", "no", "cc100")


def test_place_by_data_set():
    record = derived(README__md="---\ndatasets: [imdb]\n---\n")
    assert (record.task, record.subtask) == ("sentiment", "imdb")


def test_broken_files_derive_to_nothing_rather_than_fail():
    record = derived(README__md="---\n[\n---\n", adapter_config__json="{", head_config__json="[1]", config__json="null")
    assert (record.library, record.method, record.tags, record.card) == ("other", None, [], {})


def test_a_plain_model_is_other():
    record = derived(config__json=json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    assert (record.library, record.library_name, record.model_type) == ("other", "transformers", "bert")
    assert record.model_config == {"model_type": "bert", "architectures": ["BertModel"]}


def test_packaged_taxonomy_is_that_of_the_old_hub():
    known = Taxonomy.packaged()
    kinds = [row["type"] for row in known.tasks.values()]
    assert (kinds.count("text_task"), kinds.count("text_lang")) == (26, 97)
    kinds = [row["type"] for row in known.subtasks.values()]
    assert (kinds.count("text_task"), kinds.count("text_lang")) == (58, 130)
    assert known.type_of("no") == "text_lang"
    assert "text-classification" in known.tasks
    assert {task for task, _ in known.subtasks} <= known.tasks.keys()
    assert known.near("sentimnt", "sst2")[0] == "sentiment/sst-2"


def test_metrics_have_one_name_and_a_direction():
    names = ("Acc", "F1", "spearmanr", "Pearson correlation", "ROUGE-2", "eval_loss")
    assert [canonical_metric(name) for name in names] == ["accuracy", "f1", "spearman", "pearson", "rouge2", "loss"]
    assert higher_is_better("accuracy")
    assert not higher_is_better("perplexity")


@pytest.mark.parametrize("name", configs.named())
def test_parameters_are_what_trains(name, tmp_path):
    """Not what is stored besides: LoReFT's square base, VeRA's random matrices."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 30}
    model = adapters.BertAdapterModel(BertConfig(hidden_size=128, **sizes))
    fitting = {"vblora": "vblora[vector_length=64]", "trainable_tokens": TrainableTokensConfig(token_indices=[3, 5])}
    model.add_adapter("a", config=fitting.get(name, name))
    model.train_adapter("a")
    model.save_adapter(str(tmp_path), "a", use_safetensors=True, with_head=False)
    files = MemoryFiles({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    record = asyncio.run(derive(files))
    assert record.parameters == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_rules_that_are_not_learned_are_no_parameters():
    config = {**configs.named()["compacter"], "learn_phm": False}
    assert not configs.trains(config, "bert.shared_parameters.a.phm_rule")
    assert configs.trains(config, "bert.encoder.layer.0.output.adapters.a.adapter_up.W_left")
    vera = {"peft_type": "VERA"}
    assert not configs.trains(vera, "base_model.vera_A")
    assert configs.trains(vera, "base_model.model.layers.0.q_proj.vera_lambda_b")
