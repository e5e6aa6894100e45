"""A small hub to look at: adapters of several kinds, with cards, versions, numbers, discussions and downloads."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from adapterhub import accounts, collections, ingest
from adapterhub.accounts import Principal
from adapterhub.changes import committing, manage
from adapterhub.changes.committing import Committed, Put
from adapterhub.db import schema
from adapterhub.db.schema import now
from adapterhub.facts import configs
from adapterhub.hub import Hub
from adapterhub.ops import downloads
from adapterhub.repos import discussions, refs, repos
from adapterhub.repos.repos import Repo

CONFIGS = configs.named()
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Made(NamedTuple):
    """One adapter of the sample."""

    name: str
    method: str
    base: str
    model_type: str
    place: str
    score: float | None
    about: str
    metric: str = "accuracy"
    license: str = "apache-2.0"
    language: str = "en"
    changes: Mapping[str, Any] = {}
    more: str = ""


SAMPLE = (
    Made(
        "bert-sst2",
        "seq_bn",
        "bert-base-uncased",
        "bert",
        "sentiment/sst-2",
        0.924,
        "Tells whether a sentence from a film review is favourable.",
    ),
    Made(
        "bert-sst2-houlsby",
        "double_seq_bn",
        "bert-base-uncased",
        "bert",
        "sentiment/sst-2",
        0.931,
        "The same task with two bottlenecks per layer.",
    ),
    Made(
        "roberta-sst2-lora",
        "lora",
        "roberta-base",
        "roberta",
        "sentiment/sst-2",
        0.946,
        "Low-rank updates of query and value, which can be merged.",
        changes={"r": 8},
    ),
    Made(
        "roberta-sst2-ia3",
        "ia3",
        "roberta-base",
        "roberta",
        "sentiment/sst-2",
        0.928,
        "Learned factors only: the smallest of the family.",
    ),
    Made(
        "roberta-imdb",
        "par_bn",
        "roberta-base",
        "roberta",
        "sentiment/imdb",
        0.957,
        "Long film reviews, read to their end.",
    ),
    Made(
        "bert-mrpc-mam",
        "mam",
        "bert-base-uncased",
        "bert",
        "sts/mrpc",
        0.889,
        "Do two sentences say the same? Prefixes and parallel bottlenecks together.",
        metric="f1",
    ),
    Made(
        "roberta-squad-unipelt",
        "unipelt",
        "roberta-base",
        "roberta",
        "qa/squad1",
        0.911,
        "Finds the answer to a question in a paragraph.",
        metric="f1",
    ),
    Made(
        "bert-mnli-prefix",
        "prefix_tuning_flat",
        "bert-base-uncased",
        "bert",
        "nli/multinli",
        0.817,
        "Entailment, contradiction or neither.",
    ),
    Made(
        "xlmr-swahili",
        "seq_bn_inv",
        "xlm-roberta-base",
        "xlm-roberta",
        "sw/wiki",
        None,
        "Swahili from Wikipedia, trained by masked language modelling. Stack a task adapter on it.",
        language="sw",
    ),
    Made(
        "xlmr-quechua",
        "seq_bn_inv",
        "xlm-roberta-base",
        "xlm-roberta",
        "qu/wiki",
        None,
        "Quechua from Wikipedia.",
        language="qu",
        license="mit",
    ),
    Made(
        "xlmr-english-sst2",
        "seq_bn",
        "xlm-roberta-base",
        "xlm-roberta",
        "sentiment/sst-2",
        0.902,
        "Made to be stacked on a language adapter.",
        changes={"leave_out": [0]},
        more="dependencies:\n- key: acme/xlmr-swahili\n  description: Any language adapter of this model will do.\n",
    ),
    Made(
        "bert-loreft",
        "loreft",
        "bert-base-uncased",
        "bert",
        "nli/rte",
        0.741,
        "Edits three positions of each layer.",
        license="",
    ),
)
_CARD = """---
{license}base_model: {base}
language: {language}
tags:
- adapters
- adapterhub:{place}
{more}{results}---

# {title}

{about}

## How it was trained

On the training split for three epochs with a learning rate of `1e-4`; the base model stayed frozen.

| split | sentences |
|---|---:|
| train | 67,349 |
| validation | 872 |

```python
model.set_active_adapters("{name}")
```

## Limits

It was trained on film reviews. Other texts may surprise it.
"""
_RESULTS = """model-index:
- name: {name}
  results:
  - task: {{type: text-classification}}
    dataset: {{name: {dataset}, type: {dataset}, split: validation}}
    metrics:
    - {{type: {metric}, value: {score}}}
"""


def files(made: Made, *, hidden: int = 32, layers: int = 2) -> dict[str, bytes]:
    """The files of an adapter, as the library saves them."""
    _, dataset = made.place.split("/")
    results = _RESULTS.format(name=made.name, dataset=dataset, metric=made.metric, score=made.score)
    card = _CARD.format(
        **{**made._asdict(), "license": f"license: {made.license}\n" if made.license else ""},
        title=made.name.replace("-", " ").title(),
        results=results if made.score else "",
    )
    config = config_of(made)
    saved = {
        "config": config,
        "hidden_size": hidden,
        "model_class": "BertAdapterModel",
        "model_name": made.base,
        "model_type": made.model_type,
        "name": made.name,
        "version": "adapters.2.0.0",
    }
    return {
        "README.md": card.encode(),
        "adapter_config.json": json.dumps(saved, indent=2, sort_keys=True).encode(),
        "adapter.safetensors": weights(made, hidden, layers),
    }


def config_of(made: Made) -> dict[str, Any]:
    """The config of an adapter; prefixes are flat, which keeps files small."""
    config = {**CONFIGS[made.method], **made.changes}
    if "configs" in config:
        return {
            **config,
            "configs": [{**member, "flat": True} if "flat" in member else member for member in config["configs"]],
        }
    return config


def tensors(made: Made, hidden: int, layers: int) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of what the library saves for this config of a BERT or RoBERTa."""
    model = "bert" if made.model_type == "bert" else "roberta"
    config = config_of(made)
    for member in config.get("configs", [config]):
        left_out = member.get("leave_out") or []
        for layer in (layer for layer in range(layers) if layer not in left_out):
            for place, shapes in _in_layer(member, hidden).items():
                place, _, container = place.rpartition(" ")
                for inner, shape in shapes.items():
                    yield f"{model}.encoder.layer.{layer}.{place}{container}.{made.name}.{inner}", shape
        if member.get("architecture") == "prefix_tuning":
            size = member["prefix_length"] * layers * 2 * hidden
            yield f"{model}.prefix_tuning.prefix_tunings.{made.name}.self_prefix.control_trans", [size]
        if member.get("inv_adapter"):
            half = hidden // 2
            for part in ("F", "G"):
                for index, (out, given) in {0: (half // 2, half), 2: (half, half // 2)}.items():
                    yield f"{model}.invertible_adapters.{made.name}.{part}.{index}.weight", [out, given]
                    yield f"{model}.invertible_adapters.{made.name}.{part}.{index}.bias", [out]


def _in_layer(member: Mapping[str, Any], hidden: int) -> dict[str, dict[str, list[int]]]:
    """Place in a layer, and container, to its tensors."""
    gate = {"gate.weight": [1, hidden], "gate.bias": [1]} if member.get("use_gating") else {}
    kind = member.get("architecture")
    if kind == "lora":
        wide = {"intermediate.dense.": 4 * hidden} if member["intermediate_lora"] else {}
        names = {"q": "query", "k": "key", "v": "value"}
        out = {f"attention.self.{names[key]}.": hidden for key in member["attn_matrices"]} | wide
        both = {} if member["composition_mode"] == "scale" else {"lora_A": [member["r"], hidden]}
        return {f"{place} loras": {**both, "lora_B": [size, member["r"]], **gate} for place, size in out.items()}
    if kind == "prefix_tuning":
        gates = {"weight": [1, hidden], "bias": [1]}
        return {"attention.self.prefix_tuning. prefix_gates": gates} if gate else {}
    if kind == "reft":
        projection = "units.0.projection.parametrizations.weight"
        shapes = {"units.0.learned_source.weight": [1, hidden], "units.0.learned_source.bias": [1]}
        return {
            "reft_layer. refts": {**shapes, f"{projection}.original": [1, hidden], f"{projection}.0.base": [hidden] * 2}
        }
    narrow = max(1, int(hidden // member["reduction_factor"]))
    shapes = {"adapter_down.0.weight": [narrow, hidden], "adapter_down.0.bias": [narrow]}
    shapes |= {"adapter_up.weight": [hidden, narrow], "adapter_up.bias": [hidden], **gate}
    places = {"attention.output. adapters": member["mh_adapter"], "output. adapters": member["output_adapter"]}
    return {place: shapes for place, used in places.items() if used}


def weights(made: Made, hidden: int, layers: int) -> bytes:
    """Zeros, in tensors that are named and shaped as those of the adapter."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors(made, hidden, layers):
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 256)
    return len(text).to_bytes(8, "little") + text + bytes(offset)


async def push(
    hub: Hub, who: Principal, repo: Repo, content: Mapping[str, bytes], title: str, *, pull: bool = False
) -> Committed:
    """Commits files to the default branch, or opens a pull request with them."""
    puts = []
    for path, data in content.items():
        blob = await ingest.ingest(hub, _once(data), repo_id=repo.id, name=path)
        puts.append(Put(path, blob.sha256, lfs=path.endswith(".safetensors")))
    return await committing.commit(hub, who, repo, "main", puts, title=title, create_pull=pull)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def principal(hub: Hub, name: str) -> Principal:
    """What an account may do."""
    async with hub.db.read() as conn:
        return await accounts.principal(hub.db, (await accounts.find_account(conn, name))["id"])


async def fill(hub: Hub, *, hidden: int = 32, layers: int = 2) -> None:
    """Fills an empty hub."""
    alice, bob = await principal(hub, "alice"), await principal(hub, "bob")
    for number, made in enumerate(SAMPLE):
        owner = "acme" if number % 3 else "alice"
        repo = await manage.create(hub, alice, f"{owner if made.name != 'xlmr-swahili' else 'acme'}/{made.name}")
        await push(hub, alice, repo, files(made, hidden=hidden, layers=layers), "Upload adapter")
        await _download(hub, repo, 37 * (len(SAMPLE) - number))
    await _talk(hub, alice, bob, hidden, layers)
    await manage.create(hub, bob, "bob/secret", private=True)
    await _evil(hub, bob)
    async with hub.db.write() as conn:
        both = {"title": "Film reviews", "note": "Two that agree, for one base model.", "setup": "Parallel"}
        await collections.put(
            conn, alice, "alice", "films", items=["acme/bert-sst2-houlsby", "alice/bert-sst2"], **both
        )
    await downloads.roll_up(hub)


async def _download(hub: Hub, repo: Repo, count: int) -> None:
    today = now().date()
    rows = [
        {"repo_id": repo.id, "day": today - timedelta(days=back), "count": count * (2 + back * 7 % 5) // 30}
        for back in range(0, 30, 2)
    ]
    async with hub.db.write() as conn:
        await conn.execute(sa.insert(schema.download_day), rows)
        total = sum(row["count"] for row in rows)
        await conn.execute(
            sa.update(schema.repo).where(schema.repo.c.id == repo.id).values(downloads_all=total * 4, likes=count % 9)
        )


async def _talk(hub: Hub, alice: Principal, bob: Principal, hidden: int, layers: int) -> None:
    """Versions, a tag, a discussion, and pull requests: one that can be merged and one whose check fails."""
    async with hub.db.read() as conn:
        repo = await repos.find(conn, alice, "alice/bert-sst2")
    made = SAMPLE[0]._replace(changes={"reduction_factor": 32, "dropout": 0.1}, score=0.929)
    await push(hub, alice, repo, files(made, hidden=hidden, layers=layers), "Train longer, with a narrower bottleneck")
    async with hub.db.write() as conn:
        await refs.create(conn, repo, refs.TAGS, "v1.0", "main")
        await refs.create(conn, repo, refs.HEADS, "feat/longer", "main")
        number = await discussions.begin(conn, repo, bob, "Which seed was this?", "I get `0.921` with seed 3.")
        await discussions.comment(conn, repo, number, alice, "Seed 42, as in the **table** of the card.")
    better = files(made._replace(about="Tells whether a sentence is favourable."), hidden=hidden, layers=layers)
    shorter = {"README.md": better["README.md"], "logs/train.csv": b"step,loss\n1,0.7\n"}
    await push(hub, bob, repo, shorter, "Say it in fewer words", pull=True)
    broken = better["README.md"].replace(b"value: 0.929", b"value: 9290")
    await push(hub, bob, repo, {"README.md": broken}, "Report a score that cannot be", pull=True)


async def _evil(hub: Hub, bob: Principal) -> None:
    """Names, descriptions and options that would be code if a page did not escape them."""
    repo = await manage.create(hub, bob, "bob/evil")
    made = Made("evil", "seq_bn", "bert-base-uncased", "bert", "sentiment/sst-2", None, EVIL, license="mit")
    content = files(made)
    config = json.loads(content["adapter_config.json"])
    config["config"]["non_linearity"] = EVIL
    config["config"]["reduction_factor"] = {"default": 16, EVIL: 2}
    content["adapter_config.json"] = json.dumps(config).encode()
    content["notes.txt"] = EVIL.encode()
    content["README.md"] = content["README.md"].replace(b"# Evil", b"# " + EVIL.encode())
    await push(hub, bob, repo, content, EVIL)
    async with hub.db.write() as conn:
        await discussions.begin(conn, repo, bob, EVIL, EVIL)
