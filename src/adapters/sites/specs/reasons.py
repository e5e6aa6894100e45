"""Why some families refuse a role, in words that users read."""

NO_TOKENS = "an image has no token embeddings"
NO_SEQUENCE = "prompts stand in front of tokens or patches, and this encoder hears sound"
OWN_POSITIONS = "the model makes positions and masks of the length of its input, and takes no longer ones"
ONE_VECTOR = "what stands for the whole input is read at a position that prompts would move"
