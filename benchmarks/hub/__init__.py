"""Benchmarks of the hub: each figure stands beside a baseline of the same minute and machine."""
