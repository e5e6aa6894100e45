"""What do we want? Upper bounds by case.

Source: the design study before this library was written. It measured the peers and functions written by hand for the
same shapes (the table's "by hand" is the latter, measured anew); a goal lies a little above what is possible by hand.
Goals change by decision only, never because a run missed them.
"""

from __future__ import annotations

GOALS: dict[str, float] = {
    "tiny forward, initialised, no adapter": 1.01,
    "tiny forward, adapters added, none active": 1.01,
    "tiny forward, lora": 1.20,
    "tiny forward, seq_bn": 1.15,
    "tiny forward, double_seq_bn": 1.20,
    "tiny forward, ia3": 1.12,
    "tiny forward, prefix": 1.25,
    "tiny forward, dora": 1.22,
    "tiny forward, compacter": 1.30,
    "tiny forward, loreft": 1.25,
    "tiny forward, vera": 1.20,
    "tiny forward, par_bn": 1.20,
    "tiny forward, unipelt": 1.60,
    "BERT width forward, lora": 1.02,
    "BERT width forward, seq_bn": 1.03,
    "BERT width forward, dora": 1.03,
    "BERT width training, seq_bn": 0.62,
    "BERT width training, lora": 0.67,
    "BERT width training, seq_bn, upper half": 0.44,
    "BERT width training, lora, upper half": 0.49,
    "tiny training, seq_bn": 0.88,
    "tiny training, lora": 0.92,
    "mixed batch, lora, 32 adapters": 1.30,
    "mixed batch, seq_bn, 32 adapters": 1.25,
    "mixed batch, lora, worst N / one adapter": 1.10,
    "mixed batch, seq_bn, worst N / one adapter": 1.10,
    **{f"rows by name, {name}, 32 of 50 LoRAs / one adapter": 1.15 for name in ("tiny", "BERT width")},
    **{
        f"Parallel(8) / 8 calls, {tokens} tokens, {method}, {where}": goal
        for tokens in (16, 128)
        for method in ("seq_bn", "lora")
        for where, goal in (("all layers", 0.75), ("upper half", 0.40))
    },
    **{
        f"activate ({again}) one {method}, {count} present": 0.1
        for again in ("first time", "again")
        for method in ("lora", "seq_bn")
        for count in (1, 10, 100)
    },
    **{f"load one lora, {count} present": 3.0 for count in (1, 10, 100)},
    **{f"load one seq_bn, {count} present": 5.0 for count in (1, 10, 100)},
    **{f"generate 64 tokens, {method}": 1.06 for method in ("lora", "prefix", "prefix, 8 rows")},
    **{
        f"graphs for 12 switched adapters, {method}": 1
        for method in ("lora", "seq_bn", "double_seq_bn", "ia3", "prefix", "dora", "compacter", "loreft")
    },
    **{
        f"file bytes / tensor bytes, {method}": 1.02
        for method in ("lora", "seq_bn", "double_seq_bn", "ia3", "prefix", "dora", "compacter", "loreft")
    },
}
