"""Every verb, and every other way to load a model, on a directory that ships code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from cpt_residual.cli.app import app
from cpt_residual.errors import CptResidualError
from cpt_residual.evaluation.template import ChatSide
from cpt_residual.modeling import loading
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.stages.source import _check_loads  # pyright: ignore[reportPrivateUsage]


def every_verb(root: Path, bad: Path) -> None:
    """Prints a line for each: how it ended with the family in `root`, of which `bad` is one."""
    for name, call in {**_verbs(root, bad), **_loaders(bad)}.items():
        try:
            call()
            print("RIGHT", name)
        except CptResidualError as error:
            print("REFUSED", name, error)
    print("THE END")


def _verbs(root: Path, bad: Path) -> dict[str, Callable[[], object]]:
    pair = ["--base", str(root / "base"), "--instruct", str(root / "instruct")]
    target = ["--target", str(root / "base_cpt")]
    geometry = ["--base-cpt", str(root / "base_cpt"), "--out", str(root / "geometry")]
    verbs = {
        "compute": ["compute", *pair, "--out", str(root / "residual")],
        "apply": ["apply", *target, *pair, "--out", str(root / "merged")],
        "dry": ["apply", *target, *pair, "--out", str(root / "dry"), "--dry-run"],
        "geometry": ["geometry", *pair, *geometry],
        "export": ["export", "--to", "mergekit", *target, *pair, "--out", str(root / "m.yaml")],
        "inspect": ["inspect", str(bad)],
        "verify": ["verify", str(bad)],
        "card": ["card", str(bad)],
    }
    return {
        name: lambda words=words: app(words, standalone_mode=False) for name, words in verbs.items()
    }


def _loaders(bad: Path) -> dict[str, Callable[[], object]]:
    return {
        "source": lambda: _check_loads(bad),
        "evaluate": lambda: ChatSide.of(bad),
        "train": lambda: loading.build_on_meta(loading.load_config(bad)),
        "load": lambda: loading.load_causal_lm(bad, dtype=None),
        "tokenizer": lambda: load_tokenizer(bad),
    }


if __name__ == "__main__":
    every_verb(Path(sys.argv[1]), Path(sys.argv[2]))
