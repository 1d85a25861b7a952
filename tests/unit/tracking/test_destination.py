"""Where W&B runs go, and which variables and names are refused before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.config.schema import Tracking
from cpt_residual.config.wandb_names import MAX_NAME_CHARACTERS, problem_of_name
from cpt_residual.errors import ConfigError, LaunchError
from cpt_residual.tracking.destination import (
    Destination,
    destination_of,
    require_wandb,
    why_off,
)
from cpt_residual.tracking.wandb_sink import RunIdentity

ONLINE, OFFLINE, OFF = (Tracking(wandb=mode) for mode in ("online", "offline", "off"))


@pytest.mark.parametrize(
    ("tracking", "variables", "mode"),
    [
        (ONLINE, {}, "online"),
        (OFFLINE, {}, "offline"),
        (OFF, {}, None),
        (ONLINE, {"WANDB_MODE": "offline"}, "offline"),
        (ONLINE, {"WANDB_MODE": "dryrun"}, "offline"),
        (ONLINE, {"WANDB_MODE": "run"}, "online"),
        (ONLINE, {"WANDB_MODE": "disabled"}, None),
        (OFFLINE, {"WANDB_MODE": "disabled"}, None),
        (OFFLINE, {"WANDB_DISABLED": "true"}, None),
        (OFFLINE, {"WANDB_DISABLED": "false"}, "offline"),
        (OFF, {"WANDB_MODE": "online"}, None),
        (OFF, {"WANDB_MODE": "nonsense", "WANDB_PROJECT": "a/b"}, None),
    ],
)
def test_the_mode_follows_the_variables(
    tracking: Tracking, variables: Mapping[str, str], mode: str | None
) -> None:
    found = destination_of(tracking, variables)
    assert (found.mode if found else None) == mode


def test_why_nothing_is_sent() -> None:
    assert why_off(OFF, {}) == "tracking.wandb=off"
    asked = why_off(OFF, {"WANDB_MODE": "online"})
    assert asked == "tracking.wandb=off, although WANDB_MODE=online is set"
    assert why_off(ONLINE, {"WANDB_DISABLED": "1"}) == "WANDB_DISABLED=1"
    assert why_off(ONLINE, {}) is None


def test_names_folder_and_times_come_from_the_variables(tmp_path: Path) -> None:
    found = destination_of(
        ONLINE,
        {
            "WANDB_PROJECT": "p",
            "WANDB_ENTITY": "e",
            "WANDB_DIR": str(tmp_path / "new"),
            "WANDB_INIT_TIMEOUT": "7",
            "WANDB_FINISH_TIMEOUT": "9",
            "WANDB_RESUME": "allow",
            "WANDB_TAGS": "a,b",
        },
    )
    assert found == Destination("online", "p", "e", tmp_path / "new", 7.0, 9.0)
    stated = Tracking(wandb="online", project="p", entity="e")
    assert destination_of(stated, {"WANDB_PROJECT": "p"}) == Destination("online", "p", "e")
    assert destination_of(ONLINE, {}) == Destination("online", "cpt_residual", None)


REFUSED = {
    "WANDB_MODE": ["", "ofline", "shared", "online"],
    "WANDB_DISABLED": ["perhaps"],
    "WANDB_PROJECT": ["", " ", "a/b", "a:b", "a%b", "a\nb", "x" * 129, "other"],
    "WANDB_ENTITY": ["", "a/b", "x" * 129],
    "WANDB_RUN_ID": ["abc", ""],
    "WANDB_NAME": ["abc"],
    "WANDB_RUN_GROUP": ["abc"],
    "WANDB_JOB_TYPE": ["abc"],
    "WANDB_SWEEP_ID": ["abc"],
    "WANDB_RESUME": ["must", "never", "auto", "perhaps"],
    "WANDB_RESUME_FROM": ["abc?_step=1"],
    "WANDB_FORK_FROM": ["abc?_step=1"],
    "WANDB_TAGS": ["", "a,,b", "x" * 65],
    "WANDB_DIR": ["", "/dev/null"],
    "WANDB_INIT_TIMEOUT": ["soon", "-1", "nan", "1e9"],
    "WANDB_FINISH_TIMEOUT": ["", "0"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_a_variable_that_cannot_be_followed_is_refused(name: str, value: str) -> None:
    tracking = Tracking(wandb="offline", project="p")
    with pytest.raises(LaunchError) as caught:
        destination_of(tracking, {name: value})
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    assert problem.startswith(name)
    assert "Nothing was run" in caught.value.remedy


def test_all_problems_come_at_once() -> None:
    with pytest.raises(LaunchError) as caught:
        destination_of(OFFLINE, {"WANDB_MODE": "x", "WANDB_RUN_ID": "y", "WANDB_ENTITY": ""})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_BASE_URL", "localhost:8080"),
        ("WANDB_BASE_URL", ""),
        ("WANDB_API_KEY", " spaced "),
        ("WANDB_HTTP_TIMEOUT", "soon"),
        ("WANDB__STATS_SAMPLING_INTERVAL", "often"),
        ("WANDB_QUIET", "perhaps"),
    ],
)
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_what_wandb_itself_takes_for_wrong_is_refused(mode: str, name: str, value: str) -> None:
    tracking = Tracking.model_validate({"wandb": mode})
    destination = destination_of(tracking, {name: value})
    assert destination is not None
    with pytest.raises(LaunchError) as caught:
        require_wandb(destination, {name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(name)
    assert "spaced" not in str(caught.value)


@pytest.mark.parametrize("key", ["short", "with spaces in it" * 4, "0" * 39])
def test_a_malformed_key_is_refused_and_not_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(LaunchError) as caught:
        require_wandb(Destination("online", "p", None), {})
    (problem,) = caught.value.problems
    assert problem.startswith("http://127.0.0.1:9: WANDB_API_KEY invalid: API key ")
    assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["p", "a b", "cpt_residual", "Ünïcode", "x" * 128, "a.b-c"])
def test_names_that_wandb_takes(name: str) -> None:
    from wandb.sdk.wandb_settings import Settings

    assert problem_of_name(name) is None
    Settings(project=name, entity=name)


@pytest.mark.parametrize("field", ["project", "entity"])
@pytest.mark.parametrize(("mode", "name"), [("online", ""), ("offline", "a/b")])
def test_a_name_in_the_configuration_is_checked(field: str, mode: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["+experiment=tiny", f"tracking={mode}", f"tracking.{field}='{name}'"])
    assert any(problem.startswith(f"tracking.{field}: ") for problem in caught.value.problems)


def test_names_made_of_the_longest_parts_are_not_too_long() -> None:
    identity = RunIdentity("x" * 80, 2**32 - 1, "pretrain", f"pretrain:{'y' * 80}", "ab" * 32)
    made = (identity.run_id, identity.group, identity.name, identity.stage)
    assert all(0 < len(text) <= MAX_NAME_CHARACTERS for text in made)
