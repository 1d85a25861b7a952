"""Code that a model ships is never run, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import io
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling import loading
from cpt_residual.modeling.tokenizer import load_tokenizer
from support.commands import REPOSITORY, environment
from support.every_verb import every_verb
from support.pico_family import real_family
from support.shipped_code import CODE_FILE, NOT_CAUSAL, TOKENIZER, UNKNOWN, ship_code

_ASKING = ("from_pretrained", "from_config", "generate")
"""Methods of transformers that can run a model's code."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("family")
    return real_family(root, model_type="llama", tied=False, dtype=torch.bfloat16)


@pytest.fixture
def model(tmp_path: Path, family: dict[str, Path]) -> Path:
    return Path(shutil.copytree(family["instruct"], tmp_path / "model"))


@pytest.mark.parametrize("fields", [UNKNOWN, NOT_CAUSAL])
def test_a_model(model: Path, fields: dict[str, object]) -> None:
    mark = ship_code(model, fields)
    with pytest.raises(CompatibilityError, match="only by running the code") as caught:
        loading.build_on_meta(loading.load_config(model))
    _named(caught.value, model)
    with pytest.raises(CompatibilityError, match="only by running the code") as caught:
        loading.load_causal_lm(model, dtype=torch.float32)
    _named(caught.value, model)
    assert not mark.exists()


def test_a_tokenizer(model: Path) -> None:
    mark = ship_code(model, TOKENIZER, "tokenizer_config.json")
    try:
        tokenizer = load_tokenizer(model)
    except CompatibilityError as error:
        _named(error, model)
    else:
        assert type(tokenizer).__module__.startswith("transformers.")
    assert not mark.exists()


def test_code_of_a_known_architecture_is_passed_over(model: Path) -> None:
    mark = ship_code(model, {"auto_map": UNKNOWN["auto_map"]})
    assert type(loading.load_causal_lm(model, dtype=None)).__name__ == "LlamaForCausalLM"
    assert not mark.exists()


def _named(error: CompatibilityError, model: Path) -> None:
    text = str(error)
    assert str(model) in text
    assert f"{CODE_FILE}: code" in text
    assert "auto_map" in text
    assert "trust_remote_code" not in error.remedy


Bad = tuple[str, dict[str, object], str]
NO_MODEL: Bad = ("base_cpt", UNKNOWN, "config.json")
NO_TOKENIZER: Bad = ("instruct", TOKENIZER, "tokenizer_config.json")


@pytest.mark.parametrize(
    "bad", [NO_MODEL, pytest.param(NO_TOKENIZER, marks=pytest.mark.slow)], ids=lambda bad: bad[2]
)
def test_every_verb_when_asked_hears_yes(
    tmp_path: Path,
    family: dict[str, Path],
    bad: Bad,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    mark = _family_with_code(tmp_path, family, bad)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 40))
    every_verb(tmp_path, tmp_path / bad[0])
    _nothing_ran("".join(capfd.readouterr()), mark)
    assert sys.stdin.tell() == 0


@pytest.mark.slow
@pytest.mark.parametrize("bad", [NO_MODEL, NO_TOKENIZER], ids=lambda bad: bad[2])
def test_every_verb_on_a_terminal_that_answers_yes(
    tmp_path: Path, family: dict[str, Path], bad: Bad
) -> None:
    mark = _family_with_code(tmp_path, family, bad)
    _nothing_ran(_on_a_terminal(str(tmp_path), str(tmp_path / bad[0])), mark)


def _family_with_code(root: Path, family: dict[str, Path], bad: Bad) -> Path:
    role, fields, name = bad
    for key, folder in family.items():
        shutil.copytree(folder, root / key)
    return ship_code(root / role, fields, name)


def _nothing_ran(text: str, mark: Path) -> None:
    assert "THE END" in text, text
    assert "Do you wish to run" not in text
    assert "Traceback" not in text
    assert not mark.exists(), text


def _on_a_terminal(*arguments: str) -> str:
    """What `support/every_verb.py` writes on a terminal that holds many answers of yes."""
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n" * 40)
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests/support/every_verb.py"), *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        text=True,
    ) as process:
        os.close(theirs)
        output, _ = process.communicate(timeout=280)
    os.close(ours)
    return output


def test_every_call_says_that_no_code_may_run() -> None:
    uses = [use for path in (REPOSITORY / "src").rglob("*.py") for use in _uses(path)]
    assert len(uses) >= 6
    silent = [where for where, call in uses if call is None or not _forbids(call)]
    assert not silent


def _uses(path: Path) -> Iterator[tuple[str, ast.Call | None]]:
    """Calls of methods that can run a model's code, and None for a mention that is no call."""
    text = path.read_text()
    if not any(name in text for name in _ASKING):
        return
    tree = ast.parse(text)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in _ASKING:
            call = calls.get(id(node))
            yield f"{path.name}:{node.lineno} {node.attr}", call


def _forbids(call: ast.Call) -> bool:
    return any(
        keyword.arg == "trust_remote_code"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is False
        for keyword in call.keywords
    )


def test_data_sets_have_no_loading_scripts() -> None:
    """The installed `datasets` runs no script of a data set, whatever it is told."""
    installed = find_spec("datasets")
    assert installed is not None
    assert installed.origin is not None
    text = (Path(installed.origin).parent / "load.py").read_text()
    assert "`trust_remote_code` is not supported anymore" in text
    assert "Dataset scripts are no longer supported" in text
