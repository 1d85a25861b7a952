"""A corpus artifact: its documents, what is held out, and its ledger."""
