"""Which methods does the demo compare, and with which settings?

The learning rates were chosen among two to four values each, on 1,003 texts of the training half that the demo
does not train on; the test half had no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to adapt the base model.

    Args:
        title: Name in the table and the plot.
        config: Config string for `add_adapter`; None for the two references without an adapter.
        learning_rate: Peak of the linear schedule.
        idea: What is trained, in a few words.
    """

    title: str
    config: str | None
    learning_rate: float
    idea: str


METHODS: dict[str, Method] = {
    "head": Method("head only", None, 1e-2, "base model frozen, only the prediction head learns"),
    "bottleneck": Method("bottleneck", "seq_bn", 3e-3, "a small layer after each feed-forward block"),
    "lora": Method("LoRA", "lora", 6e-3, "low-rank updates of the query and value matrices"),
    "prefix": Method(
        "prefix tuning", "prefix_tuning[bottleneck_size=64]", 2e-3, "learned keys and values before the real ones"
    ),
    "mam": Method("Mix-and-Match", "mam", 5e-4, "prefix tuning and a parallel bottleneck together"),
    "full": Method("full fine-tuning", None, 4e-4, "every weight of the base model learns"),
}
REFERENCES = frozenset({"head", "full"})
