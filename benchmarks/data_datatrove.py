"""A peer of `data.py`: datatrove's reader and tokenizer; started with that package's Python.

    python data_datatrove.py FOLDER TOKENIZER BATCH PROCESSES OUT REPORT

As documented: every task reads its files, encodes, writes, and shuffles the documents of its own
output. Joining the tasks' outputs into one order (`DocumentTokenizerMerger`) is left out.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

BYTES_PER_TOKEN = 2  # it takes four only for vocabularies beyond 65,536 tokens


def main() -> None:
    folder, tokenizer, batch, processes, out, report = sys.argv[1:]
    started = time.perf_counter()
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, glob_pattern="*.jsonl"),
            DocumentTokenizer(
                output_folder=f"{out}/tokens",
                tokenizer_name_or_path=tokenizer,
                eos_token="<|endoftext|>",  # noqa: S106  no password
                batch_size=int(batch),
                seed=0,
            ),
        ],
        tasks=int(processes),
        workers=int(processes),
        logging_dir=f"{out}/logs",
    ).run()
    seconds = time.perf_counter() - started
    num_bytes = sum(path.stat().st_size for path in Path(out, "tokens").glob("*.ds"))
    tokens = num_bytes // BYTES_PER_TOKEN
    Path(report).write_text(json.dumps({"seconds": seconds, "tokens": tokens}))


if __name__ == "__main__":
    main()
