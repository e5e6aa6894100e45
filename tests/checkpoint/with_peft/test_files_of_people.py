"""Configs as people have them: each is loaded, with weights that PEFT makes for a tiny model, or refused with reasons.

They are not part of the project. They are looked for beside the checkout (../shared/peft_configs).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import AdapterError
from tests.checkpoint.with_peft.cases import moved
from tests.tiny import build, infer, inputs

FOLDER = Path(__file__).parents[4] / "shared" / "peft_configs"
pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no configs at {FOLDER}"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

REFUSED = {
    "07": "PEFT type 'BONE' cannot be read.*merge_and_unload",
    "10": "PEFT type 'FOURIERFT' cannot be read",
    "22": "no such module",
    "42": "enable_lora is .*before version 0.3",
    "43": "PEFT type 'ADAPTION_PROMPT'.*gate inside the attention",
    "45": "use_bdlora is .*Block-diagonal",
    "50": "no such module",
    "70": "names no peft_type",
    "73": "another tool's own format",
    "78": "MLX",
    "81": "config of a whole model",
}
"""Number of a config -> what the error says."""
MODELS = {
    **dict.fromkeys(("14",), ("bert", "classification")),
    **dict.fromkeys(("47", "71"), ("distilbert", "classification")),
    "02": ("t5", "lm"),
    "57": ("mt5", "lm"),
    "38": ("bart", "lm"),
    "65": ("bert", "base"),
    "67": ("roberta", "classification"),
    "69": ("gpt2", "classification"),
    "41": ("qwen3", "lm"),
    "49": ("qwen2", "lm"),
    "25": ("bart", "base"),
    "31": ("bart", "base"),
    "03": ("bart", "lm"),
    "27": ("bart", "lm"),
    "30": ("t5", "lm"),
}
"""Number of a config -> a tiny model with modules of these names; Llama by default."""
SIZES = ("token_dim", "num_layers", "num_attention_heads", "encoder_hidden_size")
FITTED: dict[str, Any] = {"vector_length": 8, **dict.fromkeys(SIZES)}
"""Sizes of the base model, as of the tiny one; those that PEFT finds out are left to it."""
FOREIGN = {
    "05": ["encoder.layers.0.self_attention.query_key_value"],
    "33": ["text_decoder.bert.encoder.layer.0.attention.self.query"],
    "39": ["gpt_neox.layers.0.attention.query_key_value"],
    "66": ["gpt_neox.layers.0.attention.query_key_value"],
    "75": ["rwkv.blocks.0.attention.receptance"],
    "82": ["model.layers.0.self_attn.qkv_proj"],
    "50": ["transformer_blocks.0.attn.to_q"],
    "22": ["model.layers.0.self_attn.W_pack"],
}
"""Configs of models that no tiny model stands for, and a module of theirs: what is loaded elsewhere must be refused."""
EITHER = {"30": "rotary", "67": "positions"}
"""What is refused as long as the method does not act there."""

FILES = sorted(FOLDER.glob("*.json"))
FULL_PATHS = "35"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def fit(saved: dict[str, Any]) -> dict[str, Any]:
    """A config with the sizes of a tiny model."""
    fitted = {**saved, **{name: value for name, value in FITTED.items() if name in saved}}
    if saved.get("peft_type") == "OFT" or saved.get("init_lora_weights") == "mica":
        fitted |= {"r": 4}
    return fitted


def made_by_hand(folder: Path, paths: list[str], rank: int) -> None:
    tensors = {}
    for path in paths:
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.zeros(rank, 32)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.zeros(32, rank)
    save_file(tensors, folder / "adapter_model.safetensors")


def theirs(folder: Path, name: str, task: str) -> Any:
    """PEFT's model with the config in a folder; the tensors are put beside it."""
    before = (folder / "adapter_config.json").read_bytes()
    config = peft.PeftConfig.from_pretrained(str(folder))
    config.inference_mode = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(build(name, task, adapted=False), config).eval()
        moved(model)
    model.save_pretrained(folder)
    (folder / "adapter_config.json").write_bytes(before)
    return model


def tried(model: Any, folder: Path) -> tuple[str | None, str]:
    """The name of what was loaded, or None and what the error says."""
    try:
        return model.load_adapter(folder, set_active=True), ""
    except AdapterError as error:
        return None, str(error)


@pytest.mark.parametrize("path", [p for p in FILES if p.stem[:2] != FULL_PATHS], ids=lambda path: path.stem)
def test_it_is_loaded_or_refused(path: Path, tmp_path: Path) -> None:
    number, saved = path.stem[:2], read(path)
    name, task = MODELS.get(number, ("llama", "lm"))
    model = build(name, task)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folder = tmp_path / "theirs"
    folder.mkdir()
    fitted = fit(saved)
    text = path.read_bytes() if fitted == saved else json.dumps(fitted).encode()
    (folder / "adapter_config.json").write_bytes(text)
    want = None
    if number in REFUSED or number in FOREIGN or saved.get("modules_to_save") == ["embed_tokens"]:
        made_by_hand(folder, FOREIGN.get(number, ["model.layers.0.self_attn.q_proj"]), saved.get("r", 8))
    reason = REFUSED.get(number) or ("no such module" if number in FOREIGN else EITHER.get(number))
    if saved.get("modules_to_save") == ["embed_tokens"]:
        reason = "lacks tensors for modules"
    if number not in REFUSED and number not in FOREIGN and reason != "lacks tensors for modules":
        want = infer(theirs(folder, name, task), inputs(name, task, padded=False))
    loaded, said = tried(model, folder)
    if loaded is None:
        assert reason is not None and re.search(reason, said, re.DOTALL), said
        after = model.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(before[key], t) for key, t in after.items())
        return
    assert (reason is None or number in EITHER) and loaded == "theirs" and want is not None
    got = infer(model, inputs(name, task, padded=False))
    want = want[:, -got.shape[1] :] if got.dim() > 2 else want  # PEFT leaves what a decoder's prompt predicts
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("path", [p for p in FILES if p.stem[:2] == FULL_PATHS], ids=lambda path: path.stem)
def test_full_paths_below_another_class(path: Path, tmp_path: Path) -> None:
    """All paths begin as in a class that held the language model under another name."""
    saved = read(path)
    paths, rank = saved["target_modules"], saved["r"]
    layers = 1 + max(int(name.split(".")[3]) for name in paths)
    model, plain = build("llama", "lm", num_hidden_layers=layers), build("llama", "lm", num_hidden_layers=layers)
    tensors, own = {}, {}
    for name in paths:
        inner = name.removeprefix("language_model.model.")
        rows, columns = model.model.get_submodule(inner).weight.shape
        a, b = torch.randn(rank, columns) * 0.1, torch.randn(rows, rank) * 0.1
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        own[inner] = saved["lora_alpha"] / rank * b @ a
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(path.read_bytes())
    model.load_adapter(tmp_path, load_as="a", set_active=True)
    with torch.no_grad():
        for inner, change in own.items():
            plain.model.get_submodule(inner).weight.add_(change)
    given = inputs("llama", "lm")
    torch.testing.assert_close(infer(model, given), infer(plain, given), atol=1e-3, rtol=1e-3)
