"""A new suite is one folder (configuration, task file, scoring, measure); nothing else changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.bigram_models import write_bigram

TESTS = Path(__file__).parents[1]
CODE = """
import json, sys
from pathlib import Path
import cpt_residual.suites
folder, model, work = map(Path, sys.argv[1:])
cpt_residual.suites.__path__.append(str(folder))  # as if it lay beside the others

from cpt_residual.config.compose import compose
from cpt_residual.core.stage import ArtifactRef, RunContext
from cpt_residual.core.store import Store
from cpt_residual.errors import ConfigError
from cpt_residual.evaluation.results import read_results
from cpt_residual.results.table import ResultTable, Score
from cpt_residual.stages.registry import build_graph

ASKED = ["+experiment=tiny", "+suites.letters={kind: echo, max_new_tokens: 4}"]
found = {}
try:
    compose(["+experiment=tiny", "+suites.letters={kind: ecko, max_new_tokens: 4}"])
except ConfigError as error:
    found["unknown"] = error.problems
experiment = compose([*ASKED, "evaluation.suites=[letters]"])
graph = build_graph(experiment, Store(work / "store"))
(stage,) = [node.stage for node in graph.nodes if node.stage.node == "evaluate:instruct"]
found["inputs"], found["describe"] = sorted(stage.inputs()), stage.describe()
found["flops"] = stage.cost().flops
assert "torch" not in sys.modules
refs = {
    role: ArtifactRef(given.name, given.node, "f", "c", model, {})
    for role, given in stage.inputs().items()
}
stage.build(refs, work, RunContext(run_dir=work))
scores = [Score(suite="letters", **vars(row)) for row in read_results(work / "out")]
table = ResultTable.of(scores, experiment.suites["letters"].measures("letters"), ["instruct"])
measure = table.measure("reasoning")
found["label"], found["value"] = measure.label, table.value("instruct", measure)
found["scorer"] = stage.recipe().scorer_sha256
print(json.dumps(found))
"""


def test_a_suite_is_added_by_one_folder(tmp_path: Path) -> None:
    answers_a = {"<|assistant|>": "A", "A": "<|end|>"}
    model = write_bigram(tmp_path / "model", answers_a, otherwise="A")
    arguments = [TESTS / "support" / "suites", model, tmp_path / "work"]
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (problem,) = found["unknown"]
    assert "kind 'ecko' is unknown. Did you mean 'echo'?" in problem
    assert found["inputs"] == ["base", "model", "template"]
    assert found["flops"] > 0
    assert (found["describe"], found["label"], found["value"]) == (
        "letters",
        "letters repeated",
        0.5,
    )
