"""Composition: which experiments exist, what overrides do, from where it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_residual.config import folders
from cpt_residual.config.compose import compose, experiment_names
from cpt_residual.config.corpora import HubCorpus, LocalCorpus
from cpt_residual.config.folders import conf_dir
from cpt_residual.config.overrides import expand_sweep
from cpt_residual.config.schema import Experiment, PretrainedModel
from cpt_residual.config.validate import validate
from cpt_residual.errors import ConfigError

EXPERIMENTS = experiment_names()


def test_the_experiments_of_the_repository() -> None:
    assert {"llama3_500m", "qwen2_5_1b5_500m", "tiny", "tiny_high_drift"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_is_consistent(name: str) -> None:
    experiment = compose([f"+experiment={name}"])
    assert experiment.name == name
    assert experiment.roles.merged in experiment.evaluation.variants


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_why_and_at_what_cost(name: str) -> None:
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")
    assert "# Cost class: " in text
    assert compose([f"+experiment={name}"]).question.endswith(("?", ")"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_resolved_experiment_survives_json(name: str) -> None:
    experiment = compose([f"+experiment={name}"])
    assert validate(json.loads(experiment.model_dump_json())) == experiment


@pytest.mark.parametrize("family", ["llama3_1_8b", "llama3_8b", "qwen2_5_1b5", "qwen2_5_7b"])
def test_families_can_be_exchanged(family: str) -> None:
    experiment = compose(["+experiment=llama3_500m", f"family={family}"])
    base, instruct = experiment.models["base"], experiment.models["instruct"]
    assert isinstance(base, PretrainedModel)
    assert isinstance(instruct, PretrainedModel)
    assert base.num_parameters == instruct.num_parameters
    assert base.revision != instruct.revision


def test_without_overrides_it_is_tiny(tiny: Experiment) -> None:
    assert tiny == compose(["+experiment=tiny"]) == compose(["experiment=tiny"])
    assert compose(["seed=3"]).seed == 3
    assert tiny.paths.root == "outputs"
    assert tiny.tracking.wandb == "offline"
    assert tiny.launch.threads_for == {"base": 2}


def test_ordinary_overrides() -> None:
    experiment = compose(
        ["deepspeed=zero2", "launch.num_processes=2", "tracking=off", "paths.root=/a/b", "seed=7"]
    )
    assert experiment.deepspeed.zero_stage == 2
    assert experiment.launch.num_processes == 2
    assert experiment.tracking.wandb == "off"
    assert experiment.paths.root == "/a/b"
    assert experiment.seed == 7


def test_execution_does_not_change_what_is_computed(tiny: Experiment) -> None:
    other = compose(["deepspeed=zero1", "launch=node_1gpu", "tracking=online", "paths.root=/x"])
    outside = {"launch", "deepspeed", "tracking", "paths"}
    assert other.model_dump(exclude=outside) == tiny.model_dump(exclude=outside)


def test_fields_left_at_the_schema_default_need_no_plus() -> None:
    assert compose(["recipes.cpt.weight_decay=0.2"]).recipes["cpt"].weight_decay == 0.2
    assert compose(["launch.threads_for.instruct=2"]).launch.threads_for["instruct"] == 2


def test_a_plus_more_or_less_does_not_matter(tiny: Experiment) -> None:
    assert compose(["+seed=0", "++launch.threads=1", "+tracking=offline"]) == tiny


def test_replay_follows_the_recipe_of_cpt() -> None:
    experiment = compose(["recipes.cpt.learning_rate=7.0e-4"])
    assert experiment.recipes["cpt_replay"].learning_rate == 7.0e-4


def test_the_large_experiment_can_be_pointed_at_small_things(tmp_path: Path) -> None:
    experiment = compose(
        [
            "+experiment=llama3_500m",
            "corpus=local",
            "corpora.new_domain.files=[/x.jsonl]",
            f"models.base.source={tmp_path}",
            "models.base.revision=null",
            f"models.instruct.source={tmp_path}",
            "models.instruct.revision=null",
            "packs.cpt.token_budget=4096",
            "packs.cpt.sequence_length=64",
            "recipes.cpt.global_batch_tokens=512",
            "recipes.cpt.warmup_steps=0",
            "recipes.cpt.precision=fp32",
            "evaluation.suites=[heldout]",
            "deepspeed=zero2",
            "launch=local",
            "launch.num_processes=2",
            "tracking=off",
        ]
    )
    assert isinstance(experiment.corpora["new_domain"], LocalCorpus)
    assert experiment.corpora["new_domain"].files == ["/x.jsonl"]
    assert experiment.evaluation.suites == ["heldout"]


def test_the_large_experiments_are_pinned() -> None:
    experiment = compose(["+experiment=llama3_500m"])
    assert isinstance(experiment.corpora["new_domain"], HubCorpus)
    assert experiment.packs["cpt"].token_budget == 500_000_000
    assert experiment.deepspeed.zero_stage == 3
    assert experiment.evaluation.variants == [
        "base",
        "instruct",
        "base_cpt",
        "instruct_cpt",
        "base_cpt_residual",
    ]


def test_tiny_and_its_high_drift_twin_share_the_family(tiny: Experiment) -> None:
    twin = compose(["+experiment=tiny_high_drift"])
    assert twin.models == tiny.models
    for key in ("pretrain", "sft", "donor_pretrain", "donor_sft"):
        assert twin.recipes[key] == tiny.recipes[key]
        assert twin.packs[key] == tiny.packs[key]
    assert twin.recipes["cpt"].learning_rate > tiny.recipes["cpt"].learning_rate
    assert [source.corpus for source in twin.packs["cpt"].sources] == ["new_domain"]


# --- sweeps --------------------------------------------------------------------------------------
def test_a_sweep_is_a_product_and_the_last_varies_fastest() -> None:
    assert expand_sweep(
        ["seed=range(0,2)", "tracking=off", "+experiment=tiny,tiny_high_drift"]
    ) == [
        ["seed=0", "tracking=off", "+experiment=tiny"],
        ["seed=0", "tracking=off", "+experiment=tiny_high_drift"],
        ["seed=1", "tracking=off", "+experiment=tiny"],
        ["seed=1", "tracking=off", "+experiment=tiny_high_drift"],
    ]


def test_lists_and_single_values_are_no_sweep() -> None:
    overrides = ["evaluation.suites=[world,heldout]", "seed=1", "~launch.cores"]
    assert expand_sweep(overrides) == [overrides]
    assert expand_sweep([]) == [[]]


def test_every_run_of_a_sweep_composes() -> None:
    runs = expand_sweep(["seed=3,4", "+experiment=tiny,tiny_high_drift"])
    found = [(each.seed, each.name) for each in map(compose, runs)]
    assert found == [(3, "tiny"), (3, "tiny_high_drift"), (4, "tiny"), (4, "tiny_high_drift")]


@pytest.mark.parametrize("override", ["seed=interval(0,1)", "experiment=glob(tiny*)"])
def test_sweeps_that_list_nothing(override: str) -> None:
    with pytest.raises(ConfigError, match="cannot sweep over"):
        expand_sweep([override])


# --- the user's own folder -----------------------------------------------------------------------
def own_folder(tmp_path: Path, text: str) -> Path:
    (tmp_path / "my conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my conf" / "experiment" / "mine.yaml").write_text(text)
    return tmp_path / "my conf"


def test_own_experiments_come_from_a_folder(tmp_path: Path) -> None:
    folder = own_folder(
        tmp_path, "# @package _global_\ndefaults:\n  - tiny\n  - _self_\nname: mine\nseed: 5\n"
    )
    experiment = compose(["+experiment=mine"], config_dir=folder)
    assert (experiment.name, experiment.seed) == ("mine", 5)
    assert experiment_names(folder) == sorted([*EXPERIMENTS, "mine"])
    assert compose(["+experiment=tiny"], config_dir=folder).name == "tiny"


def test_own_groups_are_chosen_like_ours(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, "name: unused")
    (folder / "launch").mkdir()
    (folder / "launch" / "laptop.yaml").write_text("threads: 3\n")
    (folder / "extra").mkdir()
    (folder / "extra" / "more.yaml").write_text("# @package _global_\nseed: 9\n")
    experiment = compose(["launch=laptop", "+extra=more"], config_dir=folder)
    assert experiment.launch.threads == 3
    assert experiment.seed == 9


def test_an_unknown_name_lists_the_own_experiments_too(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, "name: unused")
    with pytest.raises(ConfigError) as caught:
        compose(["+experiment=mien"], config_dir=folder)
    assert "experiment=mien: no such experiment. Did you mean 'mine'?" in str(caught.value)


def test_a_group_that_no_folder_has_is_named_with_the_nearest(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, "# @package _global_\ndefaults:\n  - /familie: tiny\n")
    with pytest.raises(ConfigError) as caught:
        compose(["+experiment=mine"], config_dir=folder)
    assert "no configuration group 'familie'. Did you mean 'family'?" in str(caught.value)


def test_bad_yaml_of_the_user_is_shown_with_its_place(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, "name: [unclosed\n")
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        compose(["+experiment=mine"], config_dir=folder)
    assert "mine.yaml" in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        compose([], config_dir=tmp_path / "nowhere")


# --- where it runs -------------------------------------------------------------------------------
def test_it_works_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Experiment
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose([]) == tiny
    assert not list(tmp_path.iterdir())


def test_the_packaged_copy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "src" / "cpt_residual" / "config" / "folders.py"
    monkeypatch.setattr(folders, "__file__", str(module))
    with pytest.raises(ConfigError, match="configuration files of cpt_residual are missing"):
        conf_dir()
    for folder in (tmp_path / "conf", tmp_path / "src" / "cpt_residual" / "conf"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        assert conf_dir() == folder


LIGHT = """
import sys
import cpt_residual.config.compose as module
assert "hydra" not in sys.modules, "hydra is imported at import"
module.compose([])
heavy = {"torch", "transformers", "datasets", "wandb", "lm_eval", "deepspeed"} & set(sys.modules)
assert not heavy, heavy
from hydra.core.global_hydra import GlobalHydra
assert not GlobalHydra.instance().is_initialized(), "global state is left behind"
"""


def test_composing_is_light_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIGHT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
