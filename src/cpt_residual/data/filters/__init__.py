"""Document filters between a reader and a corpus; `chain` runs them."""
