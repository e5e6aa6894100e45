"""Do values computed from weights follow every change of these, also those that leave no trace?"""

from __future__ import annotations

import pytest
import torch

from tests.contract.cases import CONFIGS
from tests.tiny import infer, inputs
from tests.training.toy import trained


@pytest.mark.parametrize("method", CONFIGS)
def test_an_optimizer_that_leaves_no_trace(method: str) -> None:
    """Fused AdamW, the Trainer's default, changes tensors without counting up their `_version`."""
    model, given = trained(method=CONFIGS[method]), inputs("bert")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    infer(model.eval(), given)
    model.train()(**given, labels=torch.zeros(len(given["input_ids"]), dtype=torch.long)).loss.backward()
    infer(model.eval(), given)
    optimizer.step()
    fresh = trained(method=CONFIGS[method])
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(infer(model, given), infer(fresh.eval(), given))
