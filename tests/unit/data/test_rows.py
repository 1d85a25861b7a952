"""The assembly of rows, document by document."""

from __future__ import annotations

import numpy as np

from cpt_residual.data.packing.rows import (
    LOSS,
    PADDING,
    START,
    ConcatChunk,
    Row,
    RowPacker,
    WholeDocuments,
    cut_row,
)
from cpt_residual.modeling.encoded import Encoded, EncodedDocuments


def document(number: int, length: int) -> Encoded:
    """`length` tokens of id `number`; loss on all but the first."""
    loss = np.ones(length, dtype=np.bool_)
    loss[0] = False
    return np.full(length, number, dtype=np.uint32), loss


def rows_of(packer: RowPacker, lengths: list[int]) -> list[Row]:
    """Rows of documents that are handed over in two parts."""
    documents = [document(number, length) for number, length in enumerate(lengths, start=1)]
    half = len(documents) // 2
    rows: list[Row] = []
    for part in (documents[:half], documents[half:]):
        packer.add(EncodedDocuments.of(part))
        rows += all_of(packer)
    packer.finish()
    rows += all_of(packer)
    assert packer.pending_tokens == 0
    assert packer.num_documents == len(documents)
    return rows


def all_of(packer: RowPacker) -> list[Row]:
    rows: list[Row] = []
    while (row := packer.next_row()) is not None:
        rows.append(row)
    return rows


def test_best_fit_takes_the_fullest_row_that_still_holds_the_document() -> None:
    rows = rows_of(WholeDocuments(8, pad_id=0), [5, 6, 2, 3, 7])
    assert [row.ids.tolist() for row in rows] == [
        [2, 2, 2, 2, 2, 2, 3, 3],
        [1, 1, 1, 1, 1, 4, 4, 4],
        [5, 5, 5, 5, 5, 5, 5, 0],
    ]
    assert [row.num_tokens for row in rows] == [8, 8, 7]


def test_the_fullest_row_goes_first_when_all_are_in_use() -> None:
    rows = rows_of(WholeDocuments(8, pad_id=0, num_open_rows=2), [5, 6, 4, 3])
    assert [sorted(set(row.ids.tolist())) for row in rows] == [[0, 2], [1, 4], [0, 3]]


def test_a_document_as_long_as_the_row_is_a_row() -> None:
    for packer in (WholeDocuments(4, pad_id=0), ConcatChunk(4, pad_id=0)):
        (row,) = rows_of(packer, [4])
        assert row.flags.tolist() == [START, LOSS, LOSS, LOSS]


def test_pending_tokens_are_those_in_no_row_given() -> None:
    packer = ConcatChunk(4, pad_id=0)
    packer.add(EncodedDocuments.of([document(1, 11), document(2, 3)]))
    assert packer.pending_tokens == 0, "nothing was asked for"
    assert packer.next_row() is not None
    assert packer.pending_tokens == 7


def test_a_loss_at_the_start_of_a_segment_is_never_kept() -> None:
    ids = np.ones(3, dtype=np.uint32)
    packer = WholeDocuments(4, pad_id=0)
    packer.add(EncodedDocuments.of([(ids, np.ones(3, dtype=np.bool_))]))
    assert packer.next_row() is None
    packer.finish()
    row = packer.next_row()
    assert row is not None
    assert row.flags.tolist() == [START, LOSS, LOSS, PADDING | START]


def test_a_cut_row_is_padded() -> None:
    (row,) = rows_of(ConcatChunk(5, pad_id=9), [5])
    cut = cut_row(row, 2, pad_id=9)
    assert cut.ids.tolist() == [1, 1, 9, 9, 9]
    assert cut.flags.tolist() == [START, LOSS, PADDING | START, PADDING, PADDING]
    assert cut.num_tokens == 2
    assert row.num_tokens == 5
    assert cut_row(row, 5, pad_id=9).flags.tolist() == row.flags.tolist()
