"""What the last check of a merge would find is said before the merge where files can tell; what
only the model can tell keeps the work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cpt_residual import api
from cpt_residual.core.stage import ArtifactRef, RunContext
from cpt_residual.errors import CompatibilityError, FinalCheckError
from cpt_residual.stages.apply import Apply
from cpt_residual.stages.residual import ResidualStage
from support.merge_family import subtract
from support.pico_family import real_family
from support.stages import TextStage

MODEL = TextStage(node="model")
STAGE = Apply(
    key="m", target=MODEL, residual=ResidualStage(key="r", base=MODEL, instruct=MODEL), alpha=1.0
)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("family")
    return real_family(root, model_type="llama", tied=False, dtype=torch.bfloat16)


@pytest.fixture
def models(tmp_path: Path, family: dict[str, Path]) -> Path:
    for name, folder in family.items():
        shutil.copytree(folder, tmp_path / name)
    return tmp_path


def apply(models: Path, *, verify: bool = True) -> None:
    pair = api.Pair(models / "base", models / "instruct")
    options = api.ApplyOptions(verify=verify)
    api.apply(models / "base_cpt", pair, models / "out", options=options)


def generation(folder: Path, **fields: object) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


PROBLEMS = {
    "TemplateSyntaxError": {"template": "{% if"},
    "no users": {"template": "{{ raise_exception('no users') }}"},
    "becomes ''": {"template": ""},
    "temperature": {"generation": {"temperature": "0.6"}},
    "stop_strings": {"generation": {"stop_strings": 7}},
}


@pytest.mark.parametrize("message", PROBLEMS)
def test_said_before_anything_is_written(models: Path, message: str) -> None:
    problem = PROBLEMS[message]
    if "template" in problem:
        (models / "instruct" / "chat_template.jinja").write_text(str(problem["template"]))
    else:
        generation(models / "instruct", **dict(problem["generation"]))
    pair = api.Pair(models / "base", models / "instruct")
    with pytest.raises(CompatibilityError, match=message):
        api.plan_apply(models / "base_cpt", pair, models / "out")
    with pytest.raises(CompatibilityError, match=message):
        apply(models)
    assert {path.name for path in models.iterdir()} == {"base", "instruct", "base_cpt"}


DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
IN_PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "strings"),
    [
        ("{{ strftime_now('%d %b %Y') }}" + IN_PARTS, ["stop", "bread"]),
        pytest.param(DATED, "stop", marks=pytest.mark.slow),
        pytest.param(IN_PARTS, ["stop"], marks=pytest.mark.slow),
    ],
)
def test_dates_parts_and_stop_strings_are_carried_and_no_obstacle(
    models: Path, text: str, strings: object
) -> None:
    (models / "instruct" / "chat_template.jinja").write_text(text)
    generation(models / "instruct", stop_strings=strings)
    apply(models)
    found = json.loads((models / "out" / "generation_config.json").read_text())
    assert found["stop_strings"] == strings
    assert (models / "out" / "chat_template.jinja").read_text() == text


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.glob("*.safetensors")
    }


@pytest.mark.parametrize("way", ["repaired", "not verified"])
def test_a_failed_last_check_keeps_the_work(models: Path, way: str) -> None:
    generation(models / "instruct", cache_implementation="unheard")
    with pytest.raises(FinalCheckError, match="failed its last check") as caught:
        apply(models)
    assert "--no-verify" in caught.value.remedy
    assert "run the same command again" in caught.value.remedy
    assert not (models / "out").exists()
    kept = states(models / ".out.partial" / "out")
    assert kept
    if way == "repaired":
        generation(models / "instruct", cache_implementation=None)
    apply(models, verify=way == "repaired")
    assert states(models / "out") == kept
    assert not (models / ".out.partial").exists()


def test_the_stage_keeps_it_too(models: Path) -> None:
    generation(models / "instruct", cache_implementation="unheard")
    subtract(models / "base", models / "instruct", models / "residual")
    work = models / "work"
    (work / "out").mkdir(parents=True)
    inputs = {
        role: ArtifactRef(role, role, "f" * 64, "c" * 64, models / name, {})
        for role, name in {"target": "base_cpt", "residual": "residual"}.items()
    }
    for _ in range(2):
        with pytest.raises(FinalCheckError, match="failed its last check"):
            STAGE.build(inputs, work, RunContext(run_dir=work))
        kept = states(work / ".out.partial" / "out")
        assert kept
    generation(models / "residual" / "instruct", cache_implementation=None)
    metrics = STAGE.build(inputs, work, RunContext(run_dir=work))
    assert states(work / "out") == kept
    assert metrics["stops_at"]
