"""Names of the files of data artifacts."""

from __future__ import annotations

DOCUMENTS_FILE = "documents.jsonl"
"""Of a corpus: what is trained on, one JSON object a line."""

HELDOUT_FILE = "heldout.jsonl"
"""Of a corpus: what was kept from training."""

LEDGER_FILE = "ledger.json"
"""Of a corpus or a probe: where everything that was read went."""
