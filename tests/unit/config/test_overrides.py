"""What the command line says: hints that can be typed, sweeps that end, values that fit."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cpt_residual import plan, run
from cpt_residual.config.compose import compose
from cpt_residual.config.overrides import expand_sweep
from cpt_residual.errors import ConfigError, did_you_mean


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("question=Is it {so}?", "'question=\"Is it {so}?\"'"),
        ('question=a "b": c', "'question='\"'\"'a \"b\": c'\"'\"''"),
        ("evaluation.variants=base,instruct", "'evaluation.variants=[base,instruct]'"),
        ("question=a, b", "'question=\"a, b\"'"),
    ],
)
def test_a_hint_can_be_typed(override: str, typed: str) -> None:
    """What the message shows is one word for the shell, and it is accepted."""
    assert typed in refusal(override)
    (word,) = shlex.split(typed)
    assert compose([word])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=[x", "the list '[x' is not closed; quote the whole override for the shell: 'a=[...]'"),
        ("a=[x y=]", "quote the texts in it: 'a=[\"...\"]'"),
        ("models[base].kind=x", "an item of a list is named by its number: models.base.kind"),
        ("packs.cpt.sources.-1.share=1", "has a part that is no name and no number: '-1'"),
        ("name=\udcff", "holds what is no text"),
        ("name=a\x1b[2J", "holds what is no text"),
        (f"seed={'1' * 5000}", "it has a number of too many digits"),
        (f"seed={'[' * 3000}", "is not closed"),
        (f"name={'x' * 30000}", "characters are no override; put it into a file"),
        ("launch.device=gpu", "Did you mean 'cuda'?"),
        ("recipes.cpt.precision=bfloat16", "Did you mean 'bf16'?"),
        ("deepspeed.zero_stage='1'", "must be 'off', 1, 2 or 3. Write 1 without quotes."),
        ("deepspeed.zero_stage=false", 'write "off", in quotes'),
        (
            "models.base_residual_alpha_0.5.alpha=2",
            "dots part keys: write 'models={base_residual_alpha_0.5:{alpha:...}}'",
        ),
        ("experiment=[tiny,smoke]", "one run has one experiment"),
        ("evaluation.variants.x=1", "evaluation.variants.x=1 cannot be set"),
        ("~seed=7", "~seed=7 cannot be removed"),
        ("hydra=x", "Hydra only composes here"),
    ],
)
def test_what_is_wrong_with_an_override(override: str, expected: str) -> None:
    message = refusal(override)
    assert expected in message
    assert len(message) < 1_500


def test_an_entry_with_a_dot_is_set_as_the_hint_says() -> None:
    changed = compose(["models={base_residual_alpha_0.5:{alpha:2.0}}"])
    model = changed.models["base_residual_alpha_0.5"].model_dump()
    assert (model["alpha"], model["kind"]) == (2.0, "apply")


def test_no_hint_repeats_what_was_typed() -> None:
    assert did_you_mean("a", ["a", "b"]) == " Known: a, b."
    assert did_you_mean("gpu", ["cpu", "cuda"]) == " Did you mean 'cuda'?"
    assert did_you_mean("gpu", ["cpu", "gpus"]) == " Did you mean 'gpus'?"


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("seed=range(0)", "it lists no values"),
        ("seed=range(5,0)", "it lists no values"),
        ("seed=range(0,1,0)", "it lists more than 10,000 values"),
        ("seed=range(0,1000000000)", "it lists more than 10,000 values"),
        ("seed=shuffle(range(0,1000000000))", "it lists more than 10,000 values"),
        ("seed=range(0.0,1.0,1e-300)", "it lists more than 10,000 values"),
    ],
)
def test_sweeps_without_an_end_or_a_beginning(sweep: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        expand_sweep([sweep])


def test_a_product_of_too_many_runs() -> None:
    with pytest.raises(ConfigError, match="a sweep of more than 10,000 runs"):
        expand_sweep(["seed=range(0,1000)", "launch.threads=range(1,1000)"])


LONG = "x" * 300


@pytest.mark.parametrize(
    "override",
    [
        *("seed=4294967296", "seed=-1", f"seed={'9' * 400}", f"packs.cpt.token_budget={'9' * 400}"),
        *(
            f"paths.root=/tmp/{LONG}",
            f"corpora.x={{kind:local,files:[{LONG}]}}",
            "launch.threads=99999",
        ),
        *(
            "recipes.cpt.learning_rate=1e400",
            "recipes.cpt.learning_rate=nan",
            "tracking.project=''",
        ),
        *(
            "models.base={kind:pretrained,source:''}",
            f"models.base={{kind:pretrained,source:{LONG}}}",
        ),
    ],
)
def test_values_that_no_stage_could_use_end_with_2_and_leave_nothing(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan.main([override]) == 2
    assert not list(tmp_path.iterdir())


def test_an_empty_sweep_is_an_error_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.main(["-m", "seed=range(0)"]) == 2
    assert capsys.readouterr().err.startswith("ConfigError: cannot sweep over 'seed=range(0)'")
    assert not list(tmp_path.iterdir())
