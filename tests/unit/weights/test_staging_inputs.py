"""Where outputs may lie, and inputs that change while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual import api
from cpt_residual.errors import ArtifactError
from cpt_residual.weights.interop.residuals_folder import (
    folder_delta,
    read_residuals_folder,
    write_residuals_folder,
)
from cpt_residual.weights.io.input_files import InputFiles
from cpt_residual.weights.io.reader import Streaming
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import open_residual
from cpt_residual.weights.residual.source import PairDelta
from support.pico_family import Tensors, opened
from support.staged import NO_CHECK, contents, hidden


# --- where outputs may lie -----------------------------------------------------------------------
def test_the_current_directory_is_a_directory_like_any_other(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = api.Pair(models / "base", models / "instruct")
    api.compute(pair.base, pair.instruct, models / "r")
    api.apply(models / "cpt", pair, models / "o", options=NO_CHECK)
    merge(
        opened(models / "cpt"),
        PairDelta(opened(models / "base"), opened(models / "instruct")),
        [Output(1.0, models / "m")],
    )
    works: dict[str, Callable[[], object]] = {
        "r": lambda: api.compute(pair.base, pair.instruct, Path()),
        "o": lambda: api.apply(models / "cpt", pair, Path("x/.."), options=NO_CHECK),
        "m": lambda: merge(
            opened(models / "cpt"),
            PairDelta(opened(models / "base"), opened(models / "instruct")),
            [Output(1.0, Path())],
        ),
    }
    for name, work in works.items():
        here = models / "here" / name
        here.mkdir(parents=True)
        monkeypatch.chdir(here)
        work()
        monkeypatch.undo()
        assert contents(here) == contents(models / name)
        assert hidden(models / "here") == []


def test_outputs_do_not_lie_in_inputs(models: Path, tensors: Tensors) -> None:
    pair = api.Pair(models / "base", models / "instruct")
    api.compute(pair.base, pair.instruct, models / "r")
    lora = models / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}'
    )
    (models / "way").symlink_to("base")
    base, cpt, residual = models / "base", models / "cpt", models / "r"
    before = contents(models)
    works: list[tuple[Path, Callable[[Path], object]]] = [
        (base, lambda out: api.compute(base, pair.instruct, out)),
        (models / "way", lambda out: api.compute(base, pair.instruct, out)),
        (models / "instruct", lambda out: api.plan_compute(base, pair.instruct, out)),
        (cpt, lambda out: api.apply(cpt, pair, out, options=NO_CHECK)),
        (base, lambda out: api.apply(cpt, pair, out, alphas=[0.5, 1.0], options=NO_CHECK)),
        (residual, lambda out: api.apply(cpt, residual, out, options=NO_CHECK)),
        (residual, lambda out: api.plan_apply(cpt, residual, out)),
        (residual / "instruct", lambda out: api.apply(cpt, residual, out, options=NO_CHECK)),
        (
            cpt,
            lambda out: merge(opened(cpt), PairDelta(opened(base), opened(base)), [Output(1, out)]),
        ),
        (base, lambda out: compute(opened(base), opened(cpt), out)),
        (residual, lambda out: write_residuals_folder(open_residual(residual), out)),
        (lora, lambda out: api.apply(lora, pair, out, options=NO_CHECK)),
        (lora, lambda out: api.plan_apply(lora, pair, out)),
    ]
    for place, work in works:
        with pytest.raises(ArtifactError, match="lies in what is read") as caught:
            work(place / "out")
        assert "input: " in caught.value.problems[0]
    assert contents(models) == before
    assert hidden(models) == []


# --- what a stamp sees ---------------------------------------------------------------------------
def test_a_stamp_sees_every_input(models: Path) -> None:
    first, second = opened(models / "base"), opened(models / "instruct")
    compute(first, second, models / "r")
    write_residuals_folder(open_residual(models / "r"), models / "package")
    own = models / "package" / "config.json"
    delta = folder_delta(read_residuals_folder(models / "package"), opened(models / "cpt"))
    files = InputFiles.of(
        [opened(models / "cpt")], folders=[delta.instruct_side], files=delta.files
    )
    stamp = files.stamp(alpha=1.0)
    files.require_unchanged()
    assert files.stamp(alpha=0.5) != stamp
    for path in (own, models / "cpt" / "tokenizer.json"):
        stat = path.stat()
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + b" ")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(ArtifactError, match=path.name):
            files.require_unchanged()
        changed = InputFiles.of(
            [opened(models / "cpt")], folders=[delta.instruct_side], files=delta.files
        )
        assert changed.stamp(alpha=1.0) != stamp
        files, stamp = changed, changed.stamp(alpha=1.0)


def test_models_that_change_while_their_residual_is_computed(models: Path) -> None:
    shard = models / "instruct" / "model.safetensors"

    def progress(done: int, total: int, unit: str) -> None:
        last = shard.read_bytes()[-1:]
        with shard.open("r+b") as file:  # the same bytes: only that it was written is seen
            file.seek(-1, os.SEEK_END)
            file.write(last)

    streaming = Streaming(progress=progress)
    with pytest.raises(ArtifactError, match="changed while they were read") as caught:
        api.compute(models / "base", models / "instruct", models / "r", streaming=streaming)
    assert caught.value.problems == (str(shard),)
    assert not (models / "r").exists()
    assert hidden(models) == []
