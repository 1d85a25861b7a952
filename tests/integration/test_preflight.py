"""What would stop an experiment after days of training is said before anything is built."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cpt_residual.config.compose import compose
from cpt_residual.core.stage import no_progress
from cpt_residual.errors import CompatibilityError
from cpt_residual.stages.execute import Builder
from cpt_residual.stages.overview import Overview
from cpt_residual.stages.preflight import Preflight, check_all, missing_sources, preflight
from cpt_residual.stages.registry import localised
from support.commands import call, command, environment
from support.hub_family import write_hub_family
from support.large_experiment import hub_cache, large_overrides, text_corpus
from support.pico_family import read_all, real_family, write_weights

Family = dict[str, Path]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("origin")
    text_corpus(folder / "reference.jsonl")
    return real_family(folder, model_type="llama", tied=False, dtype=torch.float32)


@pytest.fixture
def family(origin: Family, tmp_path: Path) -> Family:
    """A copy to damage."""
    return {key: Path(shutil.copytree(origin[key], tmp_path / key)) for key in ("base", "instruct")}


@pytest.fixture
def check(origin: Family, tmp_path: Path) -> Callable[..., Preflight]:
    def run(family: Family, *extra: str) -> Preflight:
        corpus = origin["base"].parent / "reference.jsonl"
        overrides = [*large_overrides(family, corpus), f"paths.root={tmp_path / 'root'}", *extra]
        return check_all(localised(compose(overrides)), no_progress)

    return run


def built(root: Path) -> list[str]:
    """Names of the stages that have published something."""
    return sorted(folder.name for folder in root.glob("store/[a-z]*"))


def edit(path: Path, **fields: object) -> None:
    content: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **fields}))


def text_of(found: Preflight) -> str:
    with pytest.raises(CompatibilityError) as raised:
        found.require_sound()
    return str(raised.value)


def test_a_sound_family_has_no_fault(family: Family, check: Callable[..., Preflight]) -> None:
    found = check(family)
    found.require_sound()
    assert found == Preflight(checked=("base", "instruct"), absent=(), faults=())
    assert str(found) == "configs, tokenizers, templates and tensors of base, instruct"


def two_more_tokens(family: Family) -> None:
    path = family["instruct"] / "tokenizer.json"
    fields = json.loads(path.read_text())
    first = max(entry["id"] for entry in fields["added_tokens"])
    first = max(first, *fields["model"]["vocab"].values()) + 1
    fields["added_tokens"] += [
        {**fields["added_tokens"][0], "id": first + number, "content": f"<|more_{number}|>"}
        for number in range(2)
    ]
    path.write_text(json.dumps(fields))


def another_head(family: Family) -> None:
    edit(family["instruct"] / "config.json", tie_word_embeddings=True)
    edit(family["base"] / "config.json", tie_word_embeddings=True)


def a_tensor_too_many(family: Family) -> None:
    tensors = read_all(family["base"])
    write_weights(family["base"], {**tensors, "model.layers.7.extra.weight": torch.ones(2)})


def few_positions(family: Family) -> None:
    for folder in family.values():
        edit(folder / "config.json", max_position_embeddings=32)


def raising_template(family: Family) -> None:
    (family["instruct"] / "chat_template.jinja").write_text("{{ raise_exception('never') }}")


def broken_template(family: Family) -> None:
    (family["instruct"] / "chat_template.jinja").write_text("{% for message in %}")


FAULTS: dict[str, tuple[Callable[[Family], None], list[str], tuple[str, ...]]] = {
    "two more tokens": (
        two_more_tokens,
        [],
        ("residual:family", "apply:base_cpt_residual", "evaluate:base", "<|more_0|>"),
    ),
    "a tied flag with another head": (
        another_head,
        [],
        ("residual:family", "tie_word_embeddings", "lm_head.weight is stored with other values"),
    ),
    "a tensor that the class has not": (a_tensor_too_many, [], ("base: ", "layers.7.extra")),
    "rows longer than the positions": (
        few_positions,
        [],
        ("cpt:base_cpt: ", "cpt:instruct_cpt: ", "64 tokens, positions: 32"),
    ),
    "a template that raises": (
        raising_template,
        [
            "suites.heldout={kind: harness, tasks: [{task: ifeval, num_fewshot: 5}], "
            "corpora: null, max_documents: null, new_domain: null}"
        ],
        ("evaluate:base, evaluate:instruct", "never", "lm-eval would ignore num_fewshot=5"),
    ),
    "a template that does not compile": (
        broken_template,
        [],
        ("apply:base_cpt_residual: instruct: the chat side of", "chat template 'default'"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_the_stages_that_would_meet_it(
    name: str, family: Family, check: Callable[..., Preflight], tmp_path: Path
) -> None:
    damage, extra, expected = FAULTS[name]
    damage(family)
    text = text_of(check(family, *extra))
    for words in expected:
        assert words in text
    assert text.endswith("Nothing was built.")
    assert not built(tmp_path / "root")


def test_a_class_that_mixes_documents_is_named_before_the_pack_is_built(
    check: Callable[..., Preflight], tmp_path: Path
) -> None:
    made = write_hub_family(tmp_path / "family", "bloom")
    found = check({"base": made.base, "instruct": made.instruct}, "packs.cpt.sequence_length=32")
    text = text_of(found)
    assert "cpt:base_cpt" in text
    assert "BloomForCausalLM does not keep the documents of a packed row apart" in text
    assert not built(tmp_path / "root")


def test_a_date_in_a_template_is_no_fault(family: Family, check: Callable[..., Preflight]) -> None:
    path = family["instruct"] / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}" + path.read_text())
    check(family).require_sound()


def test_all_faults_are_told_at_once(family: Family, check: Callable[..., Preflight]) -> None:
    few_positions(family)
    two_more_tokens(family)
    text = text_of(check(family))
    assert "faults would stop this experiment later" in text.splitlines()[0]
    assert "positions: 32" in text
    assert "<|more_0|>" in text


def test_models_of_the_hub_are_checked_once_they_are_here(
    family: Family, origin: Family, tmp_path: Path
) -> None:
    overrides = large_overrides(family, origin["base"].parent / "reference.jsonl")
    overrides += [*hub_cache(tmp_path / "hub", family), f"paths.root={tmp_path / 'root'}"]
    experiment = localised(compose(overrides))
    found = check_all(experiment, no_progress)
    assert found == Preflight((), ("base", "instruct"), ())
    assert str(found) == "no released model is here; not here yet: base, instruct"
    builder = Builder.of(experiment)
    overview = missing_sources(Overview.of(builder.graph, builder.store))
    assert [stage.name for stage in overview.stages] == ["base", "instruct"]


def test_without_released_models_nothing_is_done(tmp_path: Path) -> None:
    builder = Builder.of(localised(compose(["+experiment=tiny", f"paths.root={tmp_path}"])))
    found = preflight(builder, Overview.of(builder.graph, builder.store))
    assert found == Preflight((), (), ())
    assert str(found) == "no released model is used"


def test_a_run_downloads_first_and_then_refuses_before_it_trains(
    family: Family, origin: Family, tmp_path: Path
) -> None:
    few_positions(family)
    overrides = large_overrides(family, origin["base"].parent / "reference.jsonl")
    overrides += hub_cache(tmp_path / "hub", family)
    done = subprocess.run(
        command("run", *overrides, "paths.root=root"),
        cwd=tmp_path,
        env={**environment(), "HF_HUB_CACHE": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "2 faults would stop this experiment later" in done.stderr
    assert built(tmp_path / "root") == ["source"]


def test_plan_checks_on_request(family: Family, origin: Family, tmp_path: Path) -> None:
    few_positions(family)
    overrides = large_overrides(family, origin["base"].parent / "reference.jsonl")
    plain = call("plan", *overrides, cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    checked = call("plan", *overrides, "--check", cwd=tmp_path)
    assert checked.returncode == 2
    assert checked.stdout == plain.stdout
    assert checked.stderr.splitlines()[0].startswith("checked: configs, tokenizers")
    assert "positions: 32" in checked.stderr
    assert not built(tmp_path / "outputs")
