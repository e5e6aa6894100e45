"""Cards as the old hub had them, with its quirks."""

from __future__ import annotations

from pathlib import Path

SST = """\
# Adapter-Hub adapter entry
type: text_task
task: sentiment
subtask: sst-2
model_type: bert
model_name: bert-base-uncased
author: Jane Doe
citation: |
  @article{x,
      title={A `quoted` title}}
config: {using: pfeiffer}
default_version: "2"
description: Adapter for binary sentiment, trained for 10 epochs.
hidden_size: 768
prediction_head: true
model_class: BertModelWithHeads
files:
- {version: "1", url: "https://example.org/1.zip", sha1: "aa", sha256: "bb"}
- {version: "2", url: "https://example.org/2.zip", sha1: "cc", sha256: "dd", score: 92.5, description: "a | b"}
github: jane
"""
HOULSBY = (
    SST.replace("{using: pfeiffer}", "{using: houlsby, non_linearity: gelu, reduction_factor: 2}")
    .replace('default_version: "2"', "default_version: 1.10")
    .replace('version: "2"', "version: 1.10")
)
NORWEGIAN = """\
type: text_lang
task: no
subtask: wiki
model_type: bert
model_name: bert-base-multilingual-cased
author: Jane Doe
config:
  using: pfeiffer+inv
default_version: nd
files:
- version: nd
  url: https://example.org/no.zip
  sha256: "00"
prediction_head: false
"""
CARDS = {
    "ukp/sst_pfeiffer.yaml": SST,
    "ukp/sst_houlsby.yaml": HOULSBY,
    "ukp/no-wiki.yml": "---\n" + NORWEGIAN,
    "jane/my adapter--x.yaml": SST.replace("task: sentiment\n", 'task: "sentiment\\""\n'),
    "jane/unknown.yaml": SST.replace("pfeiffer", "pfeifer"),
    "jane/broken.yaml": "type: [text_task\n",
    "jane/short.yaml": "type: text_task\n",
    "api/reserved.yaml": SST,
}


def write(folder: Path, cards: dict[str, str] = CARDS) -> Path:
    """A copy of the old hub in `folder`."""
    for name, text in cards.items():
        path = folder / "adapters" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
