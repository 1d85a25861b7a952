"""Random words at the door of every command: a documented exit status, no traceback, no files.

Arguments that could begin real work (two sound models, an experiment that runs) are not among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cpt_residual import plan, row, run
from cpt_residual.cli import app

NUM_DEFAULT, NUM_SLOW = 100, 500
STATUSES = {0, 1, 2}

VERBS: dict[str, Sequence[str]] = {
    "compute": ("--base", "--instruct", "--out", "--storage", "--rank", "--explained-variance"),
    "apply": (
        *("--target", "--out", "--residual", "--base", "--instruct", "--alpha", "--target-base"),
        *("--method", "--density", "--drop-rate", "--seed", "--rank", "--cpt-strength", "--scale"),
        *("--embedding-rows", "--auto-alpha", "--vocab-policy", "--new-token-rows", "--no-verify"),
    ),
    "inspect": ("--json",),
    "verify": ("--run", "--base", "--instruct", "--threads", "--json"),
    "geometry": ("--base", "--instruct", "--base-cpt", "--out", "--instruct-cpt", "--threads"),
    "card": ("--out",),
    "export": ("--out", "--format"),
    "lineage": ("--run",),
    "gc": ("--root",),
    "data inspect": ("--root", "--rows", "--seed", "--tokenizer", "--figures", "--full"),
    "data export": ("--out", "--root", "--to"),
    "unknown": ("--what",),
}
WORDS = (
    *("", " ", ".", "..", "~x", "~nobody-of-this-name", "missing", "file.txt", "folder", "empty"),
    *("model", "plan.json", "bad.json", "no-access", "-1", "0", "1", "1.0e400", "nan", "inf", "-"),
    *("9" * 400, "1e5", "add", "ties", "all", "fp32", "bf16", "attention=0.5", "=", "x=y", "--"),
    *("a:b", "[red]x[/red]", "residual:family:", "x\x1b[31m", "tab\tline\n", "\udcff\udcfe"),
    *("\N{SNOWMAN}", "e\u0301" * 40, "x" * 300, "--json", "--dry-run", "--help", "--no-such"),
)
OVERRIDES = (
    *("+experiment=nowhere", "seed=" + "9" * 400, "seed=x", "seed", "=", "", "a.b.c=1", "+x=1"),
    *("~seed", "seed=[", "seed={a:", "seed=\udcff", "seed=\x1b", "train=???", "paths.root="),
    *("--config-dir=missing", "--config-dir=file.txt", "--out=folder", "--no-such", "-m"),
    *("seed=range(0)", "seed=1,2", "[red]=x", "launch.cores=-1", "launch.device=gpu"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: files and folders that are no models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "plan.json").write_text('{"schema": 1}')
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    for name in ("folder", "empty", "model", "~x"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / "x").write_text("x")
    (tmp_path / "model" / "config.json").write_text('{"model_type": 3}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\xff" * 100)
    return tmp_path


def _arguments(chance: random.Random) -> list[str]:
    verb = chance.choice(list(VERBS))
    words = verb.split()
    for _ in range(chance.randrange(8)):
        words += [chance.choice(VERBS[verb])] if chance.random() < 0.6 else []
        words += [chance.choice(WORDS)] if chance.random() < 0.8 else []
    if chance.random() < 0.5:  # what a verb must have, so that it is not all missing options
        for option in VERBS[verb]:
            if option in ("--base", "--instruct", "--target", "--base-cpt", "--out", "--run"):
                words += [option, chance.choice(WORDS)]
    return words


def _overridden(chance: random.Random) -> list[str]:
    """Never an experiment that is sound: one of the overrides is not known."""
    words = [chance.choice(OVERRIDES) for _ in range(chance.randrange(4))]
    return ["no_such_key=1", *words]


def _run_one(chance: random.Random) -> tuple[list[str], Callable[[], object]]:
    kind = chance.choice(["cli"] * 7 + ["plan", "run", "row"])
    if kind == "cli":
        words = _arguments(chance)
        return words, lambda: app.main(words)
    if kind == "row":
        words = [chance.choice(WORDS) for _ in range(chance.randrange(4))]
        return words, lambda: row.main(words)
    words = _overridden(chance)
    return words, lambda: (plan if kind == "plan" else run).main(words)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def _check(seeds: range, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(folder)
    for seed in seeds:
        words, call = _run_one(random.Random(seed))
        try:
            status = call()
        except SystemExit as end:
            status = end.code
        out, errors = capsys.readouterr()
        told = f"seed {seed}: {words!r}: status {status}\n{errors}"
        assert status in STATUSES, told
        assert "Traceback" not in errors, told
        assert (errors != "") == (status != 0), told
        assert "\x1b" not in out, told
        assert _files(folder) == before, told


@pytest.mark.parametrize("part", range(4))
def test_no_words_bring_a_command_down(
    folder: Path, capsys: pytest.CaptureFixture[str], part: int
) -> None:
    size = NUM_DEFAULT // 4
    _check(range(part * size, (part + 1) * size), folder, capsys)


@pytest.mark.slow
def test_many_more_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _check(range(1000, 1000 + NUM_SLOW), folder, capsys)
