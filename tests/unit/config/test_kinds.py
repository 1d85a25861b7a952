"""A later `kind` takes the former kind's own keys with it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.config.corpora import LocalCorpus, WorldCorpus
from cpt_residual.config.merging import Dare
from cpt_residual.config.schema import (
    AppliedModel,
    Experiment,
    HarnessSuite,
    PretrainedModel,
)
from cpt_residual.errors import ConfigError

LOCAL = "corpora: {new_domain: {kind: local, files: [/x.jsonl], heldout_documents: 9}}"


def composed(folder: Path, *layers: str, overrides: tuple[str, ...] = ()) -> Experiment:
    """The last of experiment files that follow `tiny`, each building on the one before."""
    (folder / "experiment").mkdir(parents=True)
    before = "tiny"
    for number, text in enumerate(layers):
        head = f"# @package _global_\ndefaults:\n  - {before}\n  - _self_\n"
        before = f"own{number}"
        (folder / "experiment" / f"{before}.yaml").write_text(f"{head}{text}\n")
    return compose([f"+experiment={before}", *overrides], config_dir=folder)


def test_a_file_may_replace_a_part_of_the_world_with_the_users_text(tmp_path: Path) -> None:
    experiment = composed(tmp_path, LOCAL)
    expected = LocalCorpus(kind="local", files=["/x.jsonl"], heldout_documents=9)
    assert experiment.corpora["new_domain"] == expected
    assert isinstance(experiment.corpora["general"], WorldCorpus)


@pytest.mark.parametrize(
    "overrides",
    [
        ["corpora.new_domain={kind:local,files:[/x.jsonl],heldout_documents:9}"],
        [
            "corpora.new_domain.files=[/x.jsonl]",
            "corpora.new_domain.heldout_documents=9",
            "corpora.new_domain.kind=local",
        ],
    ],
)
def test_so_may_the_command_line(overrides: list[str]) -> None:
    assert isinstance(compose(overrides).corpora["new_domain"], LocalCorpus)


def test_groups_in_a_list_follow_each_other_like_files(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - tiny\n  - override /corpus: [world, local]\n  - _self_\n"
        "corpora: {new_domain: {files: [/x.jsonl]}}\n"
    )
    corpus = compose(["+experiment=own"], config_dir=tmp_path).corpora["new_domain"]
    assert corpus == LocalCorpus(kind="local", files=["/x.jsonl"], heldout_documents=100)


def test_models_suites_and_methods_change_their_kind_too(tmp_path: Path) -> None:
    commit = "0" * 40
    experiment = composed(
        tmp_path,
        "models:\n"
        f"  scratch: {{kind: pretrained, source: org/name, revision: '{commit}'}}\n"
        "  base_cpt_residual: {merge: {method: {kind: low_rank, rank: 2}}}\n"
        "suites: {world: {kind: harness, tasks: [{task: ifeval}]}}",
        "models: {base_cpt_residual: {merge: {method: {kind: dare, drop_rate: 0.2}}}}",
    )
    assert isinstance(experiment.models["scratch"], PretrainedModel)
    assert isinstance(experiment.suites["world"], HarnessSuite)
    merged = experiment.models["base_cpt_residual"]
    assert isinstance(merged, AppliedModel)
    assert merged.merge.method == Dare(drop_rate=0.2)


def test_a_kind_that_comes_back_has_its_keys_again(tmp_path: Path) -> None:
    experiment = composed(tmp_path, LOCAL, "corpora: {new_domain: {kind: world}}")
    assert experiment.corpora["new_domain"] == WorldCorpus(kind="world", part="new_domain")


@pytest.mark.parametrize(
    ("layers", "overrides"),
    [
        (["corpora: {new_domain: {kind: local, files: [/x.jsonl], part: new_domain}}"], ()),
        ([LOCAL, "corpora: {new_domain: {part: new_domain}}"], ()),
        ([LOCAL], ("corpora.new_domain.part=new_domain",)),
    ],
    ids=["beside the new kind", "in a later file", "in a later override"],
)
def test_what_the_user_gave_for_the_present_kind_is_never_dropped(
    tmp_path: Path, layers: list[str], overrides: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(tmp_path, *layers, overrides=overrides)
    (problem,) = caught.value.problems
    assert problem.startswith(
        "corpora.new_domain.part: 'new_domain': kind local has no such key, kind world has: give "
        "that kind too, or leave the key out. Known: kind, files, content_sha256, text_field, "
        "bad_lines, heldout_documents, filters."
    )


def test_a_key_of_another_kind_without_that_kind_says_so() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["corpora.new_domain.files=[/x.jsonl]"])
    (problem,) = caught.value.problems
    assert "kind world has no such key, kind local has: give that kind too" in problem


def test_a_typing_error_is_no_key_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(tmp_path, LOCAL, "corpora: {new_domain: {fils: [/y.jsonl]}}")
    (problem,) = caught.value.problems
    assert "unknown key. Did you mean 'files'? (in " in problem
    assert problem.endswith("own1.yaml)")
