"""A merged model renders what instruct renders, for every named template; what is not carried is
named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from cpt_residual import api
from cpt_residual.errors import ArtifactError
from cpt_residual.modeling.saving import carry_side_files
from cpt_residual.stages.source import source_files
from cpt_residual.weights.interop.residuals_folder import write_residuals_folder
from cpt_residual.weights.merge.merge_record import read_merge_record
from cpt_residual.weights.residual.residual_format import open_residual
from support.cli_family import make
from support.merge_family import add, subtract

DEFAULT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + DEFAULT
RAG = "{% for document in documents or [] %}{{ document['text'] }}{% endfor %}" + DEFAULT
TOOL = {
    "type": "function",
    "function": {"name": "city", "description": "naïve", "parameters": {"type": "object"}},
}
DIALOGUE = [{"role": "user", "content": "the city"}, {"role": "assistant", "content": "bread"}]
PROCESSOR = {"processor_class": "X", "image_processor": {"auto_map": {"A": "b.C"}, "size": 3}}


def _files(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(DEFAULT)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)
    (folder / "additional_chat_templates" / "rag.jinja").write_text(RAG)


def _list(folder: Path) -> None:
    named = {"default": DEFAULT, "tool_use": TOOLS, "rag": RAG}
    listed = [{"name": name, "template": text} for name, text in named.items()]
    _config(folder, chat_template=listed)


def _one(folder: Path) -> None:
    _config(folder, chat_template=TOOLS)


def _processor(folder: Path) -> None:
    _files(folder)
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR))
    (folder / "preprocessor_config.json").write_text('{"size": 1}')
    (folder / "video_preprocessor_config.json").write_text('{"size": 2}')
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": DEFAULT}))


def _config(folder: Path, **fields: object) -> None:
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "files": _files,
    "list": _list,
    "one": _one,
    "processor": _processor,
}


@pytest.fixture(params=LAYOUTS)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = make(tmp_path)
    LAYOUTS[request.param](root / "instruct")
    (root / "cpt" / "chat_template.jinja").write_text("{{ 'of the target' }}")
    return root


def rendered(folder: Path) -> dict[str, str]:
    """Every named template's text of one dialogue, with tools and documents, and what transformers
    chooses by itself."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    templates = tokenizer.chat_template
    names = [*templates] if isinstance(templates, dict) else [None]
    given = {"documents": [{"title": "t", "text": "bread"}], "tokenize": False}
    return {
        f"{name} {with_tools}": tokenizer.apply_chat_template(
            DIALOGUE, chat_template=name, tools=[TOOL] if with_tools else None, **given
        )
        for name in {None, *names}
        for with_tools in (False, True)
    }


def same(instruct: Path, out: Path) -> None:
    expected = rendered(instruct)
    assert "naïve" in "".join(expected.values())
    assert rendered(out) == expected
    for path in (*instruct.glob("*processor_config.json"), *instruct.glob("chat_template.json")):
        wanted = json.loads(path.read_text())
        wanted.get("image_processor", {}).pop("auto_map", None)
        assert json.loads((out / path.name).read_text()) == wanted


def test_from_two_models(models: Path) -> None:
    pair = api.Pair(models / "base", models / "instruct")
    options = api.ApplyOptions(verify=False)
    api.apply(models / "cpt", pair, models / "out", options=options)
    same(models / "instruct", models / "out")


def test_from_a_stored_residual(models: Path) -> None:
    subtract(models / "base", models / "instruct", models / "residual")
    shutil.move(models / "instruct", models / "was")
    add(models / "cpt", models / "residual", models / "out")
    same(models / "was", models / "out")


def test_through_the_residuals_package(models: Path) -> None:
    subtract(models / "base", models / "instruct", models / "residual")
    write_residuals_folder(open_residual(models / "residual"), models / "package")
    same(models / "instruct", models / "package")
    api.apply(
        models / "cpt", models / "package", models / "out", options=api.ApplyOptions(verify=False)
    )
    same(models / "instruct", models / "out")


def test_through_training_and_the_source(models: Path, tmp_path: Path) -> None:
    instruct = models / "instruct"
    (tmp_path / "trained").mkdir()
    carry_side_files(instruct, tmp_path / "trained", dtype=torch.float32)
    same(instruct, tmp_path / "trained")
    names = source_files(instruct)
    for path in instruct.rglob("*"):
        assert path.is_dir() or str(path.relative_to(instruct)) in names


def test_what_is_not_carried_is_named(tmp_path: Path) -> None:
    root = make(tmp_path)
    instruct = root / "instruct"
    _processor(instruct)
    for name in ("odd.dat", "README.md", "pytorch_model.bin", "conf.py", ".hidden"):
        (instruct / name).write_text("x")
    (instruct / "additional_chat_templates" / "notes.txt").write_text("x")
    (instruct / "original").mkdir()
    named = [
        "additional_chat_templates/notes.txt",
        "conf.py",
        "odd.dat",
        "original/",
        'processor_config.json: auto_map {"A": "b.C"}',
    ]
    subtract(root / "base", instruct, root / "residual")
    report = add(root / "cpt", root / "residual", root / "stored")
    assert list(report.left_out) == named
    pair = api.Pair(root / "base", instruct)
    api.apply(root / "cpt", pair, root / "out", options=api.ApplyOptions(verify=False))
    assert list(read_merge_record(root / "out").left_out) == named
    written = {str(path.relative_to(root / "out")) for path in (root / "out").rglob("*")}
    assert not written & {"conf.py", "odd.dat", "original", ".hidden", "pytorch_model.bin"}


def test_the_terminal_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cpt_residual.cli.app import app

    monkeypatch.chdir(make(tmp_path))
    (tmp_path / "instruct" / "odd.dat").write_text("x")
    pair = ["--base", "base", "--instruct", "instruct"]
    app(["compute", *pair, "--out", "r"], standalone_mode=False)
    assert "odd.dat (of the instruct model)" in capsys.readouterr().out
    app(
        ["apply", "--target", "cpt", "--residual", "r", "--out", "o", "--no-verify"],
        standalone_mode=False,
    )
    assert "odd.dat (of the instruct model)" in capsys.readouterr().out


def test_named_templates_of_a_hub_snapshot_are_links_into_its_blobs(tmp_path: Path) -> None:
    from cpt_residual.modeling.side_files import carry_tokenizer

    snapshot, blobs = tmp_path / "hub/snapshots" / ("a" * 40), tmp_path / "hub/blobs"
    named = snapshot / "additional_chat_templates"
    for folder in (named, blobs, tmp_path / "out"):
        folder.mkdir(parents=True)
    (blobs / "1").write_text(TOOLS)
    (named / "tool_use.jinja").symlink_to("../../../blobs/1")
    name = "additional_chat_templates/tool_use.jinja"
    assert carry_tokenizer(snapshot, tmp_path / "out") == [name]
    assert (tmp_path / "out" / name).read_text() == TOOLS
    outside = tmp_path / "elsewhere.jinja"
    outside.write_text("secret")
    (named / "other.jinja").symlink_to(outside)
    with pytest.raises(ArtifactError, match="links that leave the directory"):
        carry_tokenizer(snapshot, tmp_path / "out")
