"""What is written is as readable as the user's umask says, whichever library writes it."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cpt_residual.cli import app
from cpt_residual.modeling.initialise import write_initial_model
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.saving import carry_side_files, save_weights
from support.bigram_models import write_random
from support.cli_family import APPLY, PAIR, make
from support.training import _TEXTS, PICO  # pyright: ignore[reportPrivateUsage]


@contextmanager
def masked(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
    }


def _check(folder: Path, mask: int) -> None:
    found = modes(folder)
    assert len(found) > 2
    for name, mode in found.items():
        full = 0o777 if (folder / name).is_dir() else 0o666
        assert mode == full & ~mask, f"{name}: {mode:o}"


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_models_that_are_made_or_trained(tmp_path: Path, mask: int) -> None:
    """The start model's chat folder is write-protected, as in some shared caches."""
    start = write_random(tmp_path / "start")
    for path in (start / "chat").rglob("*"):
        path.chmod(0o444)
    (start / "chat").chmod(0o555)
    try:
        model = load_causal_lm(start, dtype=torch.float32)
        with masked(mask):
            write_initial_model(tmp_path / "made", architecture=PICO, texts=_TEXTS, seed=0)
            out = tmp_path / "trained"
            state = dict(model.named_parameters(remove_duplicate=False))
            save_weights(model, state, out, dtype=torch.float32)
            carry_side_files(start, out, dtype=torch.float32)
    finally:
        (start / "chat").chmod(0o755)
    _check(tmp_path / "made", mask)
    _check(out, mask)


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_residuals_and_merged_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    monkeypatch.chdir(make(tmp_path))
    with masked(mask):
        for words in (["compute", *PAIR, "--out", "r"], [*APPLY, "--out", "m"]):
            with pytest.raises(SystemExit) as end:
                app.main(words)
            assert end.value.code == 0
    _check(tmp_path / "r", mask)
    _check(tmp_path / "m", mask)
