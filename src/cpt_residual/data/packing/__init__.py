"""Token ids to packed sequences (rows) of an exact token budget."""
