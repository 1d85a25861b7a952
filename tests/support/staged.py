"""Outputs in the making: what lies there, and work that ends in the middle."""

from __future__ import annotations

from pathlib import Path

from cpt_residual import api
from cpt_residual.weights.io.output_dir import OutputFolder
from cpt_residual.weights.maths.kernels import MergeSums

NO_CHECK = api.ApplyOptions(verify=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def fail_after_a_half(out: Path, error: BaseException, *, whole: bool) -> None:
    with OutputFolder(out, stamp="a") as folder:
        if whole:
            folder.start("whole").write_text("x")
            folder.complete("whole", MergeSums(num_moved=3))
        folder.start("half").write_text("y")
        raise error
