"""Token maps, rows of tokens, and the chat side of a model."""
