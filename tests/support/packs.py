"""Document files and packs for tests, with an encoder that needs no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cpt_residual.core.stage import no_progress
from cpt_residual.data.documents.parsing import Messages
from cpt_residual.data.packing.build import (
    PackLedger,
    PackPlan,
    PhasePlan,
    Tokenising,
    build_pack,
)
from cpt_residual.data.tokenize.document_source import DocumentSource, Packing
from cpt_residual.modeling.encoded import Encoded, EncodedDocuments

PAD, EOS, BOS = 0, 1, 2
FIRST_BYTE = 10

Dialogue = list[dict[str, str]]


def encode_bytes(documents: Sequence[str]) -> EncodedDocuments:
    """BOS, one token a byte, EOS; loss on all but the first."""
    return EncodedDocuments.of(
        [_encoded([BOS, *(FIRST_BYTE + byte for byte in text.encode()), EOS]) for text in documents]
    )


def encode_dialogues(documents: Sequence[Messages]) -> EncodedDocuments:
    """One token a byte; loss on the answers only."""
    encoded: list[Encoded] = []
    for messages in documents:
        ids: list[int] = []
        loss: list[bool] = []
        for message in messages:
            content = [FIRST_BYTE + byte for byte in message["content"].encode()]
            ids += content
            loss += [message["role"] == "assistant"] * len(content)
        encoded.append((np.array(ids, dtype=np.uint32), np.array(loss, dtype=np.bool_)))
    return EncodedDocuments.of(encoded)


def _encoded(ids: list[int]) -> Encoded:
    loss = np.ones(len(ids), dtype=np.bool_)
    loss[0] = False
    return np.array(ids, dtype=np.uint32), loss


def dialogue(question: str, answer: str) -> Dialogue:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    return _write(path, [{"text": text} for text in texts])


def write_dialogues(path: Path, dialogues: Sequence[Dialogue]) -> Path:
    return _write(path, [{"messages": messages} for messages in dialogues])


def _write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def byte_texts(
    path: Path,
    name: str = "text",
    *,
    share: float = 1.0,
    packing: Packing = "concat_chunk",
    max_epochs: int | None = None,
) -> DocumentSource:
    return DocumentSource(
        name, path, share=share, encode=encode_bytes, packing=packing, max_epochs=max_epochs
    )


def byte_dialogues(
    path: Path, name: str = "chat", *, share: float = 1.0, max_epochs: int | None = None
) -> DocumentSource:
    return DocumentSource(
        name, path, share, encode_dialogues, packing="whole", max_epochs=max_epochs
    )


def plan(
    length: int,
    budget: int,
    *,
    repeat: bool = False,
    seed: int = 0,
    phases: Sequence[PhasePlan] = (),
) -> PackPlan:
    return PackPlan(
        sequence_length=length,
        token_budget=budget,
        repeat=repeat,
        seed=seed,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        tokenizer_map_hash="bytes",
        phases=tuple(phases),
    )


def pack(
    out: Path,
    sources: Sequence[DocumentSource],
    asked: PackPlan,
    *,
    batch_bytes: int = 100_000,
    tokenising: Tokenising | None = None,
) -> PackLedger:
    """`batch_bytes`: encoded at a time in this process, unless `tokenising` says how."""
    how = tokenising or Tokenising(batch_bytes=batch_bytes)
    return build_pack(out, sources, asked, progress=no_progress, tokenising=how)
