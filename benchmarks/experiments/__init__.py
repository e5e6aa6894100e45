"""One file per experiment. Each has `ours` and, where PEFT has the method, `peft`: from a `Run` to `Result`s.

Every function runs in a process of its own, into which neither `adapters` nor `peft` was imported before.
"""
