"""Models that want their own code run, and code that says so when it is."""

from __future__ import annotations

import json
from pathlib import Path

CODE_FILE = "conf.py"
MARK = "it-ran"


def ship_code(folder: Path, fields: dict[str, object], name: str = "config.json") -> Path:
    """Adds `fields` to one of a model's configs, and code that leaves a mark beside itself (and
    where it is copied to) when it runs. Returns the mark's path."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    mark = folder.parent / MARK
    (folder / CODE_FILE).write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).write_text('')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'unheard'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    return mark


UNKNOWN: dict[str, object] = {
    "model_type": "unheard",
    "auto_map": {"AutoConfig": "conf.Config", "AutoModelForCausalLM": "conf.Model"},
}
"""An architecture that only the shipped code knows."""
NOT_CAUSAL: dict[str, object] = {
    "model_type": "vit",
    "auto_map": {"AutoModelForCausalLM": "conf.Model"},
}
"""A known architecture that is no causal language model but by the shipped code."""
TOKENIZER: dict[str, object] = {
    "tokenizer_class": "UnheardTokenizer",
    "auto_map": {"AutoTokenizer": ["conf.Tokenizer", "conf.Tokenizer"]},
}
