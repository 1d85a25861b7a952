"""A peer of `data.py`: `datasets.map` with a fast tokenizer, then `group_texts`.

    python data_map.py FOLDER TOKENIZER_FOLDER PROCESSES LENGTH OUT REPORT

As in the causal language modelling example of transformers, with EOS after every document and
without the attention mask, which nobody needs here.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import chain
from pathlib import Path

import datasets
from transformers import AutoTokenizer


def main() -> None:
    folder, tokenizer_folder, processes, length, out, report = sys.argv[1:]
    num_proc, block = int(processes), int(length)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    eos_id = tokenizer.eos_token_id
    datasets.disable_progress_bars()

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(
            batch["text"], return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        return {"input_ids": [[*ids, eos_id] for ids in encoded["input_ids"]]}

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        ids = list(chain(*batch["input_ids"]))
        whole = len(ids) // block * block
        rows = [ids[first : first + block] for first in range(0, whole, block)]
        return {"input_ids": rows, "labels": [row.copy() for row in rows]}

    times = [time.perf_counter()]
    files = [str(path) for path in sorted(Path(folder).glob("*.jsonl"))]
    text = datasets.load_dataset(
        "json", data_files=files, split="train", cache_dir=out, num_proc=num_proc
    )
    times.append(time.perf_counter())
    encoded = text.map(tokenise, batched=True, num_proc=num_proc, remove_columns=["text"])
    times.append(time.perf_counter())
    grouped = encoded.map(group_texts, batched=True, num_proc=num_proc)
    times.append(time.perf_counter())
    parts = {
        name: after - before
        for name, before, after in zip(
            ("load", "tokenise", "group"), times[:-1], times[1:], strict=True
        )
    }
    found = {
        "seconds": times[-1] - times[0],
        "tokens": len(grouped) * block,  # the rest of each batch is dropped
        "parts": parts,
    }
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
