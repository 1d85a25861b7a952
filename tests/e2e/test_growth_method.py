"""A way of adding from another package: one file, found by `run` and by `cpt-residual apply`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.cli_family import PAIR, make
from support.commands import call
from support.large_experiment import large_overrides, text_corpus
from support.pico_family import read_all, real_family

TOY = '''
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cpt_residual.methods.method import Method, Replaced


class Sign(Method):
    """Every element by its sign alone, as large as the mean of all."""

    kind: Literal["sign"] = "sign"
    factor: Annotated[float, Field(gt=0, description="on the mean magnitude")] = 1.0
    words: ClassVar[str] = "signs of the residual"
    paper: ClassVar[str] = "https://example.org/sign"
    num_reads: ClassVar[int] = 2

    def for_tensor(self, tensor):
        import numpy as np

        blocks = [np.abs(block) for block in tensor.residual()]
        size = self.factor * sum(b.sum() for b in blocks) / sum(b.size for b in blocks)
        return Replaced(lambda start, stop, read: size * np.sign(read()))
'''


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with one module and its entry point, as pip leaves it."""
    site, info = tmp_path / "site", tmp_path / "site" / "toy_sign-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "toy_sign.py").write_text(TOY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-sign\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cpt_residual.methods]\nsign = toy_sign\n")
    monkeypatch.setenv("PYTHONPATH", str(site))


def expected(base: Path, instruct: Path, target: Path, factor: float) -> dict[str, torch.Tensor]:
    models = [read_all(folder) for folder in (base, instruct, target)]
    merged: dict[str, torch.Tensor] = {}
    for name, start in models[2].items():
        residual = (models[1][name].double() - models[0][name].double()).numpy()
        move = factor * np.abs(residual).mean() * np.sign(residual)
        merged[name] = (start.double() + torch.from_numpy(move)).to(start.dtype)
    return merged


@pytest.mark.usefixtures("_installed")
def test_on_the_command_line(tmp_path: Path) -> None:
    root = make(tmp_path / "family")
    options = ("--method", "sign", "--factor", "0.5", "--no-verify")
    done = call("cli", "apply", "--target", "cpt", *PAIR, *options, "--out", "out", cwd=root)
    assert done.returncode == 0, done.stderr
    wanted = expected(root / "base", root / "instruct", root / "cpt", 0.5)
    for name, value in read_all(root / "out").items():
        torch.testing.assert_close(value, wanted[name], rtol=2**-7, atol=1e-6)
    card = (root / "out" / "README.md").read_text()
    assert "[signs of the residual](https://example.org/sign) (factor 0.5)" in card
    assert "--method sign --factor 0.5" in card
    wrong = call("cli", "apply", "--target", "cpt", *PAIR, "--factor", "2", "--out", "o", cwd=root)
    assert wrong.returncode == 2
    assert "--factor belongs to --method sign" in wrong.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
def test_in_an_experiment(tmp_path: Path) -> None:
    """The merged model is that of the command line: merge.json, card, `card` and `verify`."""
    family = real_family(tmp_path / "family", model_type="llama", tied=False, dtype=torch.float32)
    corpus = text_corpus(tmp_path / "reference.jsonl")
    merge = "{method: {kind: sign, factor: 2.0}}"
    done = call(
        "run",
        *large_overrides(family, corpus),
        f"+models.base_sign={{kind: apply, target: base, residual: family, merge: {merge}}}",
        "evaluation.variants=[base_sign]",
        "packs.cpt.token_budget=32768",
        "paths.root=out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (model,) = (tmp_path / "out" / "store" / "apply").iterdir()
    wanted = expected(family["base"], family["instruct"], family["base"], 2.0)
    for name, value in load_file(model / "model.safetensors").items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-7)
    record = json.loads((model / "merge.json").read_text())
    assert record["recipe"]["method"] == {"kind": "sign", "factor": 2.0}
    assert str(tmp_path) not in json.dumps(record)
    assert all(each["content"] for each in record["inputs"])
    for verb in ("card", "verify"):
        told = call("cli", verb, str(model), cwd=tmp_path)
        assert told.returncode == 0, told.stderr
    assert "signs of the residual" in (model / "README.md").read_text()
