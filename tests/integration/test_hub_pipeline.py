"""From releases to scores over model families as they lie on the hub, in this process."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.core.stage import ArtifactRef, no_progress
from cpt_residual.stages.execute import Builder, BuildRequest
from cpt_residual.stages.registry import REPORT_NODE
from support.hub_family import HubFamily, write_hub_family
from support.hub_releases import RELEASES
from support.pico_family import read_all

QUICK = {"llama3", "pythia", "gemma3", "mixtral"}


def overrides_for(family: HubFamily, root: Path) -> list[str]:
    """`+experiment=llama3_500m` on small models and the Python language reference."""
    corpus = root / "reference.jsonl"
    texts = [text[:600] for text in pydoc_data.topics.topics.values()][:30]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    models = {"base": family.base, "instruct": family.instruct}
    return [
        "+experiment=llama3_500m",
        *(f"models.{key}.source={path}" for key, path in models.items()),
        *(
            f"models.{key}.{field}=null"
            for key in models
            for field in ("revision", "num_parameters")
        ),
        "corpus=local",
        f"corpora.new_domain.files=[{corpus}]",
        "corpora.new_domain.heldout_documents=3",
        "packs.cpt.sequence_length=32",
        "packs.cpt.token_budget=4096",
        "recipes.cpt.global_batch_tokens=512",
        "recipes.cpt.warmup_steps=1",
        "recipes.cpt.learning_rate=1.0e-3",
        "suite=[heldout]",
        "evaluation.suites=[heldout]",
        "evaluation.precision=fp32",
        "launch=local",
        "launch.device=cpu",
        "deepspeed=off",
        "tracking=off",
        f"paths.root={root / 'outputs'}",
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(set(RELEASES) - {"bloom", "falcon"})  # mix documents
    ],
)
def test_from_releases_to_scores_and_geometry(name: str, tmp_path: Path) -> None:
    family = write_hub_family(tmp_path, name)
    builder = Builder.of(compose(overrides_for(family, tmp_path)))
    refs: dict[str, ArtifactRef] = {}
    for node in builder.graph.nodes:
        key = node.stage.node
        if key != REPORT_NODE:
            request = BuildRequest(builder.experiment, key, tmp_path / "run")
            refs[key] = builder.build(request, no_progress).ref
    bits = {
        key.removeprefix("evaluate:"): float(ref.metrics["heldout_new_domain/bits_per_byte"])
        for key, ref in refs.items()
        if key.startswith("evaluate:")
    }
    assert bits["base_cpt"] < bits["base"]
    assert bits["instruct_cpt"] < bits["instruct"]
    assert bits["base_cpt_residual"] < bits["instruct"]
    assert set(str(refs["apply:base_cpt_residual"].metrics["stops_at"]).split()) == {"1", "4"}
    assert float(refs["geometry"].metrics["drift"]) > 0
    cpt, merged = (read_all(refs[key].path) for key in ("cpt:base_cpt", "apply:base_cpt_residual"))
    assert merged.keys() == cpt.keys()
