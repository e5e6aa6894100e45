"""How does a model with adapters travel inside of a SentenceTransformer? As a model of the type "adapters".

sentence-transformers opens the model in its folder by the Auto classes of transformers, which choose a class by
`model_type`. So that is ours there, which `training/inner.py` registers, and config.json says what to open:

    {"model_type": "adapters", "inner_model_type": "bert", "architectures": ["BertModel"], "inner_base": "org/base",
     "active_setup": {...}, "adapters": {...}, and the fields of the model's own config}

The rest of the folder is that of a whole model (`full_model.py`), or in a Trainer's checkpoint what trains
(`trainers.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from adapters.checkpoint.layout import write_json

MODEL_TYPE = "adapters"
"""Model type in config.json of a model that sentence-transformers has saved."""
INNER_TYPE = "inner_model_type"
"""Entry of config.json: the model type of transformers."""
BASE = "inner_base"
"""Entry of config.json: where the base model came from."""
PLACE = "inner_place"
"""Entry of config.json: the path of the model inside of the one that the Trainer trained; null if none did."""
ACTIVE = "active_setup"
"""Entry of config.json: the block that was active, as `AdapterCompositionBlock.to_dict` gives it; null if none was."""
ENTRIES = INNER_TYPE, BASE, PLACE, ACTIVE


def write_inner_config(model: Any, folder: Path, trainer: Any) -> None:
    """Write config.json of a model whose config says which adapters it has, saved by a Trainer if one is given."""
    data: dict[str, Any] = model.config.to_dict()
    setup = model._engine.config.active_setup
    data |= {INNER_TYPE: data["model_type"], "model_type": MODEL_TYPE, "architectures": [type(model).__name__]}
    data |= {BASE: model.config.name_or_path, ACTIVE: None if setup is None else setup.to_dict()}
    names = trainer.model.named_modules() if trainer is not None else ()
    data[PLACE] = next((name for name, module in names if module is model), None)
    write_json(folder / CONFIG_NAME, data)
