"""A knowledge probe: cloze questions about rare spans of a corpus."""
