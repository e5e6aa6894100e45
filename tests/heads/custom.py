"""A head of a user's own."""

from __future__ import annotations

from typing import Any

from adapters.heads import PredictionHead


class Custom(PredictionHead):
    def __init__(self, model: Any, name: str, size: int = 5, **config: Any) -> None:
        super().__init__(name)
        self.config = {"num_labels": size, "layers": 1, "activation_function": None, **config}
        self.build(model)

    def forward(
        self, outputs: Any, cls_output: Any = None, attention_mask: Any = None, return_dict: bool = False, **kw: Any
    ) -> Any:
        self.seen = sorted(kw)
        logits = super().forward(cls_output)
        return type(outputs)(logits) if return_dict else (logits,)
