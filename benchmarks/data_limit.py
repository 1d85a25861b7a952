"""The limit of `data.py`: `encode_batch_fast` of the tokenizers library, and nothing else.

    python data_limit.py FOLDER TOKENIZER BATCH_BYTES CACHED_WORDS REPORT

`seconds` are those inside of `encode_batch_fast` alone, with as many threads as RAYON_NUM_THREADS
says: reading lines, parsing JSON, taking ids out and giving memory back are not counted.
CACHED_WORDS: how many words the model remembers, 0 for the library's own number.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import tokenizers


def batches(folder: Path, batch_bytes: int) -> Iterator[list[str]]:
    """The documents of all files in order, about `batch_bytes` of lines at a time."""
    texts: list[str] = []
    num_bytes = 0
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                texts.append(json.loads(line)["text"])
                num_bytes += len(line)
                if num_bytes >= batch_bytes:
                    yield texts
                    texts, num_bytes = [], 0
    if texts:
        yield texts


def main() -> None:
    folder, tokenizer, batch_bytes, cached_words, report = sys.argv[1:]
    backend = tokenizers.Tokenizer.from_file(tokenizer)
    backend.encode_special_tokens = True  # a document that names a special token is plain text
    backend.no_truncation()
    backend.no_padding()
    if int(cached_words):
        backend.model._resize_cache(int(cached_words))  # noqa: SLF001  it has no other name
    seconds, num_tokens = 0.0, 0
    for texts in batches(Path(folder), int(batch_bytes)):
        started = time.perf_counter()
        encodings = backend.encode_batch_fast(texts)
        seconds += time.perf_counter() - started
        num_tokens += sum(map(len, encodings))
        del encodings
    Path(report).write_text(json.dumps({"seconds": seconds, "tokens": num_tokens}))


if __name__ == "__main__":
    main()
