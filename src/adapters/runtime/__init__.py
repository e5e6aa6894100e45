"""Which adapters a model has, which of them run now, and when in the forward pass they do."""
