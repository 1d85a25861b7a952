"""An entry may change its kind; keys of its former kind are dropped by an explicit null."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.config.corpora import LocalCorpus, WorldCorpus
from cpt_residual.config.schema import Experiment
from cpt_residual.errors import ConfigError

LOCAL = "corpora: {new_domain: {kind: local, files: [/x.jsonl], heldout_documents: 9, part: null}}"


def composed(folder: Path, *layers: str) -> Experiment:
    """The last of experiment files that follow `tiny`, each building on the one before."""
    (folder / "experiment").mkdir(parents=True)
    before = "tiny"
    for number, text in enumerate(layers):
        head = f"# @package _global_\ndefaults:\n  - {before}\n  - _self_\n"
        before = f"own{number}"
        (folder / "experiment" / f"{before}.yaml").write_text(f"{head}{text}\n")
    return compose([f"+experiment={before}"], config_dir=folder)


def test_a_file_may_replace_a_part_of_the_world_with_the_users_text(tmp_path: Path) -> None:
    experiment = composed(tmp_path, LOCAL)
    expected = LocalCorpus(kind="local", files=["/x.jsonl"], heldout_documents=9)
    assert experiment.corpora["new_domain"] == expected
    assert isinstance(experiment.corpora["general"], WorldCorpus)


def test_so_may_the_command_line() -> None:
    overrides = ["corpora.new_domain={kind:local,files:[/x.jsonl],heldout_documents:9,part:null}"]
    assert isinstance(compose(overrides).corpora["new_domain"], LocalCorpus)


@pytest.mark.parametrize(
    "layers",
    [
        [LOCAL.replace(", part: null", "")],
        [LOCAL, "corpora: {new_domain: {part: new_domain}}"],
    ],
    ids=["kept from the former kind", "in a later file"],
)
def test_a_key_of_another_kind_is_an_error_that_says_the_line_to_write(
    tmp_path: Path, layers: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(tmp_path, *layers)
    (problem,) = caught.value.problems
    assert problem.startswith(
        "corpora.new_domain.part: 'new_domain': kind local has no such key, kind world has: give "
        "that kind too, or drop the key with `corpora.new_domain.part: null`. Known: kind, files, "
    )


def test_a_null_drops_no_key_that_no_kind_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(tmp_path, LOCAL, "corpora: {new_domain: {fils: null}}")
    (problem,) = caught.value.problems
    assert "fils: None: unknown key. Did you mean 'files'?" in problem
