"""Code that a model ships is never run, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling import loading
from cpt_residual.modeling.tokenizer import load_tokenizer
from support.commands import REPOSITORY, environment
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


_VERBS = """
import sys
from pathlib import Path
from cpt_residual.cli.app import app
from cpt_residual.errors import CptResidualError

root, bad = Path(sys.argv[1]), sys.argv[2]
pair = ["--base", str(root / "base"), "--instruct", str(root / "instruct")]
target = ["--target", str(root / "base_cpt")]
verbs = [
    ["compute", *pair, "--out", str(root / "residual")],
    ["apply", *target, *pair, "--out", str(root / "merged")],
    ["apply", *target, *pair, "--out", str(root / "dry"), "--dry-run"],
    ["geometry", *pair, "--base-cpt", str(root / "base_cpt"), "--out", str(root / "geometry")],
    ["export", "--to", "mergekit", *target, *pair, "--out", str(root / "merge.yaml")],
    ["inspect", bad],
    ["verify", bad],
    ["card", bad],
]
for verb in verbs:
    try:
        app(verb, standalone_mode=False)
        print("RIGHT", verb[0])
    except CptResidualError as error:
        print("REFUSED", verb[0], error)

from cpt_residual.evaluation.template import ChatSide
from cpt_residual.modeling import loading
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.stages.source import _check_loads

for name, function in {
    "source": _check_loads,
    "evaluate": ChatSide.of,
    "train": lambda path: loading.build_on_meta(loading.load_config(path)),
    "load": lambda path: loading.load_causal_lm(path, dtype=None),
    "tokenizer": load_tokenizer,
}.items():
    try:
        function(Path(bad))
        print("RIGHT", name)
    except CptResidualError as error:
        print("REFUSED", name, error)
print("THE END")
"""


@pytest.mark.parametrize(
    ("role", "fields", "name"),
    [
        ("base_cpt", UNKNOWN, "config.json"),
        pytest.param("instruct", TOKENIZER, "tokenizer_config.json", marks=pytest.mark.slow),
    ],
)
def test_every_verb_on_a_terminal_that_answers_yes(
    tmp_path: Path, family: dict[str, Path], role: str, fields: dict[str, object], name: str
) -> None:
    for key, folder in family.items():
        shutil.copytree(folder, tmp_path / key)
    mark = ship_code(tmp_path / role, fields, name)
    text = _on_a_terminal(_VERBS, str(tmp_path), str(tmp_path / role))
    assert "THE END" in text, text
    assert "Do you wish to run" not in text
    assert "Traceback" not in text
    assert not mark.exists(), text


def _on_a_terminal(code: str, *arguments: str) -> str:
    """What a program writes whose terminal holds many answers of yes."""
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n" * 40)
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
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
    tree = ast.parse(path.read_text())
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
    from datasets import load

    text = Path(load.__file__).read_text()
    assert "`trust_remote_code` is not supported anymore" in text
    assert "Dataset scripts are no longer supported" in text
