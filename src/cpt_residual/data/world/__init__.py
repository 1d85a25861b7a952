"""The procedural world of the tiny experiment: corpora, instructions and probes of one seed."""
