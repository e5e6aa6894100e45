"""What does a stock Trainer push, and can it be loaded from there?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import Trainer
from transformers.utils import hub as transformers_hub

from tests.hub.conftest import Server
from tests.tiny import build, infer, inputs
from tests.training.test_adapter_trainer import ADAPTER, HEAD
from tests.training.toy import arguments, marked_sentences, trained

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_adapters_are_pushed(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = HfApi(hub.url, hub.token)
    monkeypatch.setattr(transformers_hub, "_hf_api", api)
    model, given = trained(), inputs("bert")
    pushing = {"push_to_hub": True, "hub_model_id": "acme/trained", "hub_token": hub.token, "hub_always_push": True}
    args = arguments(tmp_path, **pushing, save_strategy="steps", save_steps=2, max_steps=2)
    trainer = Trainer(model, args, train_dataset=marked_sentences())
    trainer.train()
    trainer._finish_current_push()
    expected = {f"a/{name}" for name in ADAPTER | HEAD}
    files = api.list_repo_files("acme/trained")
    assert expected <= set(files), "a checkpoint is pushed while it trains"
    assert "config.json" not in files and not [name for name in files if name.startswith("checkpoint")]
    with torch.no_grad():
        model.classifier.bias.add_(1)
    trainer.push_to_hub()
    assert expected <= set(api.list_repo_files("acme/trained"))
    other = build("bert", "classification")
    other.load_adapter("acme/trained", subfolder="a", set_active=True)
    assert torch.equal(infer(other, given), infer(model.eval(), given))
