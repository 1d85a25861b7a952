"""Rows of a pack as Trainer sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpt_residual.data.packing.pack_format import PackView, open_pack
from cpt_residual.train.dataset import PackDataset
from support.training import LENGTH, write_model, write_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> PackView:
    folder = tmp_path_factory.mktemp("pack")
    return open_pack(write_pack(folder / "pack", write_model(folder / "model"), num_rows=6))


def test_rows_come_in_order_without_mask_and_cache(pack: PackView) -> None:
    batch = PackDataset(pack, num_rows=8).__getitems__([1, 2])
    assert set(batch) == {"input_ids", "position_ids", "labels", "use_cache"}
    assert batch["use_cache"] is False
    for offset, number in enumerate((1, 2)):
        for name, wanted in zip(
            ("input_ids", "position_ids", "labels"), pack.row(number), strict=True
        ):
            found = batch[name]
            assert isinstance(found, torch.Tensor)
            assert found.dtype == torch.int64
            assert np.array_equal(found[offset].numpy(), wanted)


def test_filler_gives_no_loss(pack: PackView) -> None:
    dataset = PackDataset(pack, num_rows=8)
    assert len(dataset) == 8
    filler = dataset[7]
    assert isinstance(filler["labels"], torch.Tensor)
    assert bool((filler["labels"] == -100).all())
    with pytest.raises(IndexError):
        dataset[8]


def test_a_data_set_never_cuts_its_pack(pack: PackView) -> None:
    with pytest.raises(ValueError, match="5 rows cannot hold the 6 rows"):
        PackDataset(pack, num_rows=5)


def test_tokens_seen_leave_out_padding_and_filler(pack: PackView) -> None:
    # The last of the 6 rows is half padding; rows 7 and 8 are filler.
    tokens = PackDataset(pack, num_rows=8).tokens_after_steps(4)
    assert tokens == [4 * LENGTH, 5 * LENGTH + LENGTH // 2]
    assert tokens[-1] == pack.ledger.tokens
