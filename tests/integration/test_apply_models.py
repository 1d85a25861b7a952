"""Residual, apply and geometry stages on models that transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpt_residual.config.merging import EXACT_STORAGE, PLAIN_ADDITION
from cpt_residual.core.stage import ArtifactRef, RunContext, Stage
from cpt_residual.errors import CompatibilityError
from cpt_residual.stages.apply import Apply, ApplyRecipe
from cpt_residual.stages.geometry import Geometry
from cpt_residual.stages.residual import ResidualRecipe, ResidualStage
from cpt_residual.weights.analysis.geometry import GeometryReport
from cpt_residual.weights.tokens.stops import verify_stops
from support.pico_family import read_all, real_family
from support.stages import TextStage

FAMILIES = [
    ("llama", False, torch.bfloat16),
    ("llama", True, torch.float32),
    ("qwen2", True, torch.bfloat16),
    ("qwen2", False, torch.float16),
]
MODEL = TextStage(node="model")


def ref(path: Path, stage: str = "cpt") -> ArtifactRef:
    return ArtifactRef(stage, stage, "f" * 64, "c" * 64, path, {})


def run(stage: Stage, work: Path, **inputs: Path) -> dict[str, object]:
    context = RunContext(run_dir=work)
    refs = {role: ref(path) for role, path in inputs.items()}
    assert refs.keys() == stage.inputs().keys()
    return dict(stage.build(refs, work, context))


residual_stage = ResidualStage(key="r", base=MODEL, instruct=MODEL)


def apply_stage(alpha: float) -> Apply:
    return Apply(key="m", target=MODEL, residual=residual_stage, alpha=alpha)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: f"{family[0]}-tied={family[1]}")
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    model_type, tied, dtype = request.param
    root = tmp_path_factory.mktemp("family")
    folders = real_family(root, model_type=model_type, tied=tied, dtype=dtype)
    run(residual_stage, root / "r", base=folders["base"], instruct=folders["instruct"])
    return folders | {"residual": root / "r" / "out", "root": root}


def test_a_merged_model_loads_and_stops(family: dict[str, Path], tmp_path: Path) -> None:
    metrics = run(
        apply_stage(1.0), tmp_path, target=family["base_cpt"], residual=family["residual"]
    )
    assert metrics["stops_at"] == "4 1"
    assert metrics["flops"] == 2.0 * float(str(metrics["num_parameters"]))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [4, 1]
    assert model.num_parameters() == metrics["num_parameters"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.chat_template
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [4, 1]
    cpt, found = read_all(family["base_cpt"]), read_all(tmp_path / "out")
    base, instruct = read_all(family["base"]), read_all(family["instruct"])
    for name, value in found.items():
        expected = instruct[name].double() + (cpt[name].double() - base[name].double())
        error = (value.double() - expected).abs()
        assert float(error.max()) <= torch.finfo(value.dtype).eps * float(expected.abs().max())


def test_geometry_stage(family: dict[str, Path], tmp_path: Path) -> None:
    stage = Geometry(base=MODEL, instruct=MODEL, base_cpt=MODEL)
    models = {role: family[role] for role in ("base", "instruct", "base_cpt")}
    metrics = run(stage, tmp_path, **models)
    report = GeometryReport.model_validate_json((tmp_path / "out" / "geometry.json").read_text())
    assert metrics["drift"] == report.total.drift
    assert "instruct_drift" not in metrics
    assert stage.node == "geometry"
    whole = Geometry(base=MODEL, instruct=MODEL, base_cpt=MODEL, instruct_cpt=MODEL)
    assert set(whole.inputs()) == {*models, "instruct_cpt"}


def test_a_model_that_runs_on_is_caught(family: dict[str, Path], tmp_path: Path) -> None:
    """The peers' trap: the target's generation config stays, and the answer never ends."""
    merged = Path(shutil.copytree(family["instruct"], tmp_path / "merged"))
    shutil.copy(family["base"] / "generation_config.json", merged / "generation_config.json")
    with pytest.raises(CompatibilityError) as caught:
        verify_stops(merged)
    assert "id 4 (<|end|>): 8 tokens came, 4 should have" in caught.value.problems
    assert verify_stops(family["instruct"]) == [4, 1]


def test_verify_refuses_what_does_not_load_completely(
    family: dict[str, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(family["base_cpt"], tmp_path / "broken"))
    shutil.copy(family["instruct"] / "chat_template.jinja", broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompatibilityError) as caught:
        verify_stops(broken)
    assert caught.value.problems == (
        "missing: model.norm.weight",
        "unexpected: model.extra.weight",
    )


def test_an_id_outside_the_vocabulary(family: dict[str, Path], tmp_path: Path) -> None:
    odd = Path(shutil.copytree(family["instruct"], tmp_path / "odd"))
    generation = json.loads((odd / "generation_config.json").read_text())
    (odd / "generation_config.json").write_text(
        json.dumps({**generation, "eos_token_id": [4, 1, 9999]})
    )
    with pytest.raises(CompatibilityError, match="id 9999 is outside the vocabulary of 280"):
        verify_stops(odd)


def test_estimates_need_no_artifact() -> None:
    stage = apply_stage(0.5)
    geometry = Geometry(base=MODEL, instruct=MODEL, base_cpt=MODEL)
    assert stage.recipe() == ApplyRecipe(alpha=0.5, merge=PLAIN_ADDITION)
    assert residual_stage.recipe() == ResidualRecipe(storage=EXACT_STORAGE, vocab_policy="equal")
    assert geometry.recipe().model_dump() == {}  # the models are inputs; nothing else decides
    assert stage.node == "apply:m"
    assert residual_stage.node == "residual:r"
    assert stage.num_parameters() == 0  # unknown to a stage that does not say
    for each in (stage, residual_stage, geometry):
        assert each.cost().disk_bytes == 0
        assert isinstance(each, Stage)
