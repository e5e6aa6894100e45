"""How are adapters trained? The Trainer of transformers works as it is; here are helpers for scripts around it."""

from adapters.training.arguments import AdapterArguments, setup_adapter_training

__all__ = ["AdapterArguments", "setup_adapter_training"]
