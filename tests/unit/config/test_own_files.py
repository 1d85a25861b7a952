"""A user's files: they come first, their `???` count, and a bad one is named with its line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cpt_residual import plan, run
from cpt_residual.config.compose import compose, compose_with_files
from cpt_residual.config.folders import conf_dir
from cpt_residual.config.schema import Experiment
from cpt_residual.errors import ConfigError

HEAD = "# @package _global_\ndefaults:\n  - tiny\n  - _self_\nname: mine\n"
Write = Callable[[str, "str | bytes"], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("experiment/mine", text): a file of the user's folder, which is returned."""

    def written(name: str, content: str | bytes) -> Path:
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "conf"

    return written


def refusal(folder: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides or ["+experiment=mine"], config_dir=folder)
    return str(caught.value)


# --- whose file is read --------------------------------------------------------------------------
OWN = {
    "launch/local": ("threads: 7\n", lambda experiment: experiment.launch.threads == 7),
    "tracking/offline": ("project: x\n", lambda experiment: experiment.tracking.project == "x"),
    "suite/heldout": (
        "# @package suites\nheldout: {kind: heldout, corpora: [general], max_documents: 7}\n",
        lambda experiment: experiment.suites["heldout"].max_documents == 150,  # tiny sets it
    ),
    "corpus/world": ("defaults: [/nowhere]\n", None),
}


@pytest.mark.parametrize("name", OWN)
def test_a_file_of_the_user_comes_before_the_packaged_one(name: str, write: Write) -> None:
    text, expected = OWN[name]
    folder = write(name, text)
    if expected is None:
        assert "nowhere" in refusal(folder, "seed=1")
        return
    composed = compose_with_files([], config_dir=folder)
    assert expected(composed.experiment)
    assert composed.own_files == (folder / f"{name}.yaml",)


def test_an_experiment_of_a_packaged_name_is_read_and_said(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packaged = (conf_dir() / "experiment" / "tiny.yaml").read_text()
    folder = write("experiment/tiny", packaged.replace("name: tiny", "name: mine"))
    arguments = ["+experiment=tiny", f"--config-dir={folder}", f"paths.root={tmp_path / 'o'}"]
    said = f"{folder / 'experiment' / 'tiny.yaml'} is read, not the packaged file of this name\n"

    assert plan.main(arguments) == 0
    head, table = capsys.readouterr().out.split("\n", 1)
    assert f"{head}\n" == said
    assert table.startswith("mine  seed 0")

    assert plan.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["own_files"] == [
        str(folder / "experiment" / "tiny.yaml")
    ]

    assert run.main([*arguments, "--cfg"]) == 0
    output = capsys.readouterr()
    assert output.err == said
    assert json.loads(output.out)["name"] == "mine"


def test_the_packaged_folder_replaces_nothing(tiny: Experiment) -> None:
    packaged = Path(__file__).parents[3] / "conf"
    composed = compose_with_files([], config_dir=packaged)
    assert (composed.experiment, composed.own_files) == (tiny, ())


def test_a_skeleton_of_the_user_is_read_and_blamed(write: Write) -> None:
    message = refusal(write("config", "name: x\n"), "seed=1")
    assert "conf/config.yaml is read, not the packaged file of this name" in message


@pytest.mark.parametrize(
    ("files", "chain", "remedy"),
    [
        ({"tiny": "tiny"}, "experiment/tiny -> experiment/tiny", "give yours another name"),
        ({"mine": "mine"}, "experiment/mine -> experiment/mine", "Take one of them out"),
        (
            {"mine": "other", "other": "/experiment/mine"},
            "experiment/mine -> experiment/other -> experiment/mine",
            "Take one of them out",
        ),
    ],
)
def test_files_that_include_themselves(
    files: dict[str, str], chain: str, remedy: str, write: Write
) -> None:
    for name, included in files.items():
        folder = write(f"experiment/{name}", f"# @package _global_\ndefaults: [{included}]\n")
    message = refusal(folder, f"experiment={next(iter(files))}")
    assert "includes the file itself" in message
    assert chain in message
    assert remedy in message


# --- ??? -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("seed: ???", ["seed"]),  # over a value of a packaged file, which merging would keep
        ("goals: ???", ["goals"]),
        ("recipes:\n  cpt:\n    learning_rate: ???", ["recipes.cpt.learning_rate"]),
        ("evaluation:\n  variants: [base, '???']", ["evaluation.variants[1]"]),
        ("launch:\n  threads_for:\n    base: ???", ["launch.threads_for.base"]),
        ("packs:\n  cpt:\n    sources:\n    - corpus: ???", ["packs.cpt.sources[0].corpus"]),
        ("models:\n  x:\n    kind: ???", ["models.x"]),
        (
            "models:\n  base_cpt_residual:\n    merge:\n      scales:\n        attention: ???",
            ["models.base_cpt_residual.merge.scales.attention"],
        ),
        (
            "goals: {new_facts_ratio_at_least: '???'}\nquestion: ???",
            ["goals.new_facts", "question"],
        ),
    ],
)
def test_what_is_missing_is_required_wherever_it_stands(
    text: str, places: list[str], write: Write
) -> None:
    message = refusal(write("experiment/mine", f"{HEAD}{text}\n"))
    problems = [line.strip() for line in message.splitlines() if "required, no default" in line]
    assert len(problems) == len(places)
    for problem, place in zip(sorted(problems), sorted(places), strict=True):
        assert problem.startswith(place)


def test_a_missing_value_that_a_later_file_or_override_gives(write: Write) -> None:
    write("experiment/mine", f"{HEAD}seed: ???\n")
    folder = write("experiment/given", HEAD.replace("tiny", "mine") + "seed: 4\n")
    assert compose(["+experiment=given"], config_dir=folder).seed == 4
    assert compose(["+experiment=mine", "seed=5"], config_dir=folder).seed == 5


@pytest.mark.parametrize("override", ["recipes.cpt.foo=???", "+foo.bar=[???]"])
def test_a_missing_value_below_an_unknown_key(override: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        compose([override])


# --- the package line ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("experiment", "defaults: [tiny]\nname: x\n", "its first line has to be"),
        ("corpus", "corpora: {}\n", "its first line has to be"),
        ("experiment", "# @package global\nname: x\n", "`# @package global` is no part of"),
        ("experiment", "# @package: _global_\nname: x\n", "line 1 names no package"),
        ("experiment", "# @package\nname: x\n", "line 1 names no package"),
    ],
)
def test_a_missing_package_line_is_said_and_shown(
    name: str, text: str, expected: str, write: Write
) -> None:
    folder = write(f"{name}/mine", text)
    message = refusal(folder, f"{name}=mine")
    assert message.startswith(f"{folder / name / 'mine.yaml'}: {expected}")
    assert "# @package _global_" in message
    assert "required" not in message


def test_the_package_line_may_follow_a_comment(write: Write) -> None:
    folder = write("experiment/mine", f"# Of mine.\n\n{HEAD}")
    assert compose(["+experiment=mine"], config_dir=folder).name == "mine"


def test_a_level_too_many(write: Write) -> None:
    message = refusal(write("launch/mine", "launch: {threads: 2}\n"), "launch=mine")
    assert "launch.launch: {'threads': 2}: unknown key" in message
    assert "leave this level out" in message


# --- files that are none -------------------------------------------------------------------------
BOMB = "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
BAD: dict[str, tuple[str | bytes, str]] = {
    "defaults are text": ("# @package _global_\ndefaults: text\n", "`defaults` must be a list"),
    "defaults are numbers": ("# @package _global_\ndefaults: [1]\n", "1: must be a name"),
    "bare off": (
        "# @package _global_\ndefaults: [{override /tracking: off}]\n",
        'YAML reads a bare off as False: write "off"',
    ),
    "Hydra's defaults": ("defaults: [{override hydra/launcher: x}]\n", "Hydra only composes here"),
    "Hydra's keys": (f"{HEAD}hydra: {{run: {{dir: x}}}}\n", "it has a key `hydra`"),
    "Latin-1": (f"{HEAD}question: é\n".encode("latin-1"), "line 6 is not UTF-8 (byte 0xe9)"),
    "UTF-16": (HEAD.encode("utf-16"), "it is UTF-16; save it as UTF-8"),
    "tab": (f"{HEAD}\tseed: 1\n", "line 6, column 1: found character '\\t'"),
    "twice": (f"{HEAD}seed: 1\nseed: 2\n", "line 7, column 1: found duplicate key seed"),
    "NUL": ("\x00", "it is not valid YAML"),
    "400 digits": (f"{HEAD}seed: {'1' * 400}\n", "line 6: a number of 400 characters"),
    "5000 digits": (f"{HEAD}seed: {'1' * 5000}\n", "line 6: a number of 5,000 characters"),
    "object": (f"{HEAD}seed: !!python/object/apply:os.getcwd []\n", "line 6: the tag !!python/"),
    "path": (
        f"{HEAD}name: !!python/object/apply:pathlib.Path [a]\n",
        "line 6: the tag !!python/object/apply:pathlib.Path",
    ),
    "binary": (f"{HEAD}question: !!binary aGk=\n", "line 6: the tag !!binary has no place here"),
    "bomb": (f"{HEAD}a: &a [1, 1, 1]\n{BOMB}", "unfold to more than 100,000 values"),
    "circle": (f"{HEAD}a: &x [*x]\n", "unfold to more than 100,000 values"),
    "deep": (f"{HEAD}a: {'[' * 50}{']' * 50}\n", "nested too deeply (at most 30 levels)"),
    "deeper": (f"{HEAD}a: {'[' * 2000}{']' * 2000}\n", "nested too deeply"),
    "long": ("#" * 1_000_001, "1,000,001 bytes are no configuration"),
    "list": ("- a\n", "it is a list; a configuration file is a mapping"),
    "null key": (f"{HEAD}null: 1\n", "Incompatible key type"),
    "list for mapping": (f"{HEAD}models: [1]\n", "models is a list, but was a mapping"),
    "mapping for list": (
        f"{HEAD}evaluation: {{variants: {{a: b}}}}\n",
        "evaluation.variants is a mapping, but was a list",
    ),
    "wrong value": (f"{HEAD}seed: 2024-01-01\n", "seed: '2024-01-01': must be a whole number (in "),
    "infinite": (f"{HEAD}recipes: {{cpt: {{learning_rate: 1e400}}}}\n", "inf: must be a finite"),
    "bare off as value": (
        f"{HEAD}deepspeed: {{zero_stage: off}}\n",
        'YAML reads a bare off as false: write "off", in quotes',
    ),
    "no interpolation": (f"{HEAD}question: ${{nope}}\n", "Interpolation key 'nope' not found"),
    "circular": (f"{HEAD}question: ${{question}}\n", "Recursive interpolation detected"),
}


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [
        ("[tiny, _self_, _self_]", "Duplicate _self_ defined in experiment/mine"),
        (
            "[{override /corpus: local}, tiny]",
            "In experiment/mine: Override 'corpus : local' is defined before "
            "'experiment@_global_: tiny'.\n  Overrides must be at the end of the defaults list",
        ),
    ],
)
def test_what_hydra_refuses_of_a_defaults_list_is_said_in_its_words(
    defaults: str, expected: str, write: Write
) -> None:
    text = f"# @package _global_\ndefaults: {defaults}\n"
    assert expected in refusal(write("experiment/mine", text))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named_in_a_few_lines(case: str, write: Write) -> None:
    content, expected = BAD[case]
    message = refusal(write("experiment/mine", content))
    assert expected in message
    assert len(message) < 1_500
    if "interpolation" not in message.lower():
        assert "conf/experiment/mine.yaml" in message


def test_a_byte_order_mark_is_no_part_of_the_text(write: Write) -> None:
    folder = write("experiment/mine", HEAD.encode("utf-8-sig"))
    assert compose(["+experiment=mine"], config_dir=folder).name == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_rights(write: Write) -> None:
    folder = write("experiment/mine", HEAD)
    (folder / "experiment" / "mine.yaml").chmod(0)
    assert "Permission denied" in refusal(folder)


def test_names_that_are_nearly_there(write: Write) -> None:
    folder = write("experiment/other", HEAD)
    (folder / "experiment" / "mine.yml").write_text(HEAD)
    (folder / "experiment" / "dir.yaml").mkdir()
    assert "mine.yml is not read: rename it to mine.yaml" in refusal(folder, "experiment=mine")
    assert "mine.yml is not read: rename it to mine.yaml" in refusal(folder, "experiment=mine.yml")
    assert "dir.yaml is a folder" in refusal(folder, "experiment=dir")
    path = refusal(folder, f"experiment={folder}/experiment/other.yaml")
    assert "looks like a path: give its folder with --config-dir" in path


@pytest.mark.parametrize("name", ["../experiment/tiny", "/etc/passwd", "'a\\tb'", "a//b", "."])
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no such experiment|cannot read|no configuration group"):
        compose([f"experiment={name}"])
