"""Names of the files of data artifacts."""

from __future__ import annotations

__all__ = ["DOCUMENTS_FILE", "HELDOUT_FILE", "LEDGER_FILE"]

DOCUMENTS_FILE = "documents.jsonl"
"""Of a corpus: what is trained on, one JSON object a line."""

HELDOUT_FILE = "heldout.jsonl"
"""Of a corpus: what was kept from training."""

LEDGER_FILE = "ledger.json"
"""Of a corpus or a probe: where everything that was read went."""
