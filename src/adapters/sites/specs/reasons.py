"""Why some families refuse a role, in words that users read."""

NO_PROMPTS = "prompts are defined for encoders, whose sequence may grow; a decoder counts and caches its positions"
NO_TOKENS = "an image has no token embeddings"
ONE_VECTOR = "what stands for the whole input is read at a position that prompts would move"
