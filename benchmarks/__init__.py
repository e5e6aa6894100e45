"""Speed, memory and size of adapters, as ratios measured side by side. `python -m benchmarks --help`."""
