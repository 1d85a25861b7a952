"""The chat contract where CPT and instruct have both added tokens to the tokenizer of base."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.modeling.tokenizer import load_tokenizer, special_tokens_of
from cpt_residual.weights.tokens.chat_contract import copy_instruct_side, install
from cpt_residual.weights.tokens.stops import verify_stops
from cpt_residual.weights.tokens.vocab_alignment import (
    NONE,
    RowPlan,
    plan_pair,
    plan_target,
)
from support.grown_family import CHAT_ML, VOCABULARY, grown_family
from support.raw import merge_rows


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return grown_family(tmp_path_factory.mktemp("family"), model_type=request.param)


def plan_of(family: Mapping[str, Path]) -> tuple[RowPlan, tuple[TokenSide, TokenSide]]:
    base, instruct, target = (TokenSide.read(family[each]) for each in family)
    rows = {
        each: len(side.ids) for each, side in zip(family, (base, instruct, target), strict=True)
    }
    pair = plan_pair(
        base,
        instruct,
        base_rows=rows["base"],
        instruct_rows=rows["instruct"],
        policy="common_tokens",
    )
    plan = plan_target(
        instruct,
        target,
        instruct_only=pair.instruct_only,
        residual_rows=rows["instruct"],
        target_rows=rows["target"],
        policy="common_tokens",
    )
    return plan, (instruct, target)


def merge_by_hand(family: Mapping[str, Path], plan: RowPlan, out: Path) -> None:
    """target + instruct - base, and instruct's rows where base has none, in plain numpy."""
    base, instruct, target = (load_file(family[role] / "model.safetensors") for role in family)
    merged = {}
    for name, value in target.items():
        if name not in VOCABULARY:
            merged[name] = value + (instruct[name] - base[name])
            continue
        merged[name] = np.empty((plan.num_rows, value.shape[1]), dtype=np.float32)
        for row, source in enumerate(plan.residual_row.tolist()):
            if plan.instruct_only[row]:
                rows = instruct[name][source][np.newaxis]
                merged[name][row] = merge_rows(rows, alpha=1.0, dtype="F32")[0]
            else:
                assert source < len(base[name])  # the pair's common tokens have the same ids here
                move = 0.0 if source == NONE else instruct[name][source] - base[name][source]
                merged[name][row] = value[row] + move
    save_file(merged, out / "model.safetensors", metadata={"format": "pt"})


def test_a_grown_target_speaks_chat_and_stops(
    family: dict[str, Path], tmp_path: Path, out: Path
) -> None:
    plan, sides = plan_of(family)
    copy_instruct_side(family["instruct"], tmp_path / "side")
    ids = install(
        instruct_side=tmp_path / "side",
        base_eos=["<|endoftext|>", "<a token of base alone>"],
        target=family["target"],
        out=out,
        plan=plan,
    )
    merge_by_hand(family, plan, out)
    target, instruct = sides[1].ids, sides[0].ids
    start, end = plan.tokens["<|im_start|>"], plan.tokens["<|im_end|>"]
    assert target["<code>"] == plan.tokens["<code>"] == 280
    assert {start, end} <= {282, 283, 284}
    assert end != instruct["<|im_end|>"]  # the case that matters: an id means another token
    assert ids == [end, 1]
    assert verify_stops(out) == ids

    tokenizer = load_tokenizer(out)
    assert tokenizer.get_vocab() == plan.tokens
    assert tokenizer.eos_token == "<|im_end|>"
    assert {"<|endoftext|>", "<|im_start|>"} <= set(tokenizer.all_special_tokens)
    assert special_tokens_of(tokenizer).keys() >= {0, 1, 2, 3, 4, start, end}
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "the<code>"}])["input_ids"]
    assert prompt[0] == start
    assert {end, 280} <= set(prompt)
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (285, ids)
    assert (config["pad_token_id"], config["bos_token_id"]) == (start, None)
    assert json.loads((out / "generation_config.json").read_text()) == {
        "eos_token_id": ids,
        "pad_token_id": start,
        "suppress_tokens": [plan.tokens["<tool>"]],
        "temperature": 0.5,
    }


def test_every_template_and_processor_config_of_instruct_is_carried(
    family: dict[str, Path], tmp_path: Path, out: Path
) -> None:
    plan, sides = plan_of(family)
    shutil.copytree(family["instruct"], tmp_path / "instruct")
    texts = {
        "additional_chat_templates/tool_use.jinja": CHAT_ML + "{{ tools }}",
        "processor_config.json": "{}",
        "chat_template.json": "{}",
    }
    (tmp_path / "instruct" / "additional_chat_templates").mkdir()
    for name, text in texts.items():
        (tmp_path / "instruct" / name).write_text(text)
    copy_instruct_side(tmp_path / "instruct", tmp_path / "side")
    install(
        instruct_side=tmp_path / "side",
        base_eos=[],
        target=family["target"],
        out=out,
        plan=plan,
        sides=sides,
    )
    assert {name: (out / name).read_text() for name in texts} == texts
    templates = load_tokenizer(out).chat_template
    assert templates == load_tokenizer(tmp_path / "instruct").chat_template
    assert sorted(templates) == ["default", "tool_use"]


def test_ids_of_instruct_in_the_grown_target_would_not_stop(
    family: dict[str, Path], out: Path
) -> None:
    """The trap with renumbered tokens: instruct's eos id is the target's `<code>`."""
    plan, sides = plan_of(family)
    install(
        instruct_side=family["instruct"], base_eos=[], target=family["target"], out=out, plan=plan
    )
    merge_by_hand(family, plan, out)
    shutil.copy(family["instruct"] / "generation_config.json", out)
    with pytest.raises(CompatibilityError, match="does not stop at its EOS token ids") as caught:
        verify_stops(out)
    assert any("<|im_end|>" in problem for problem in caught.value.problems)
    assert sides[0].ids["<|im_end|>"] in (280, 281, 282)


def test_base_as_target_gets_the_files_of_instruct(family: dict[str, Path], out: Path) -> None:
    plan, sides = plan_of({**family, "target": family["base"]})
    ids = install(
        instruct_side=family["instruct"],
        base_eos=["<|endoftext|>"],
        target=family["base"],
        out=out,
        plan=plan,
    )
    assert plan.tokens == sides[0].ids
    assert ids == [sides[0].eos_id, 1]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (family["instruct"] / name).read_bytes()


@pytest.mark.parametrize("role", ["instruct", "target"])
def test_released_layouts_are_joined_too(
    role: str, family: dict[str, Path], tmp_path: Path, out: Path
) -> None:
    """Added tokens in tokenizer_config.json, roles in special_tokens_map.json, template inside."""
    folder = Path(shutil.copytree(family[role], tmp_path / role))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    entries = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    config["added_tokens_decoder"] = {str(each.pop("id")): each for each in entries}
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if role == "instruct":
        config["chat_template"] = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|user|>"}')  # not read
    models = {**family, role: folder}
    plan, _ = plan_of(models)
    install(
        instruct_side=models["instruct"], base_eos=[], target=models["target"], out=out, plan=plan
    )
    tokenizer = load_tokenizer(out)
    assert tokenizer.get_vocab() == plan.tokens
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == CHAT_ML


def test_roles_of_a_legacy_instruct(family: dict[str, Path], tmp_path: Path, out: Path) -> None:
    instruct = Path(shutil.copytree(family["instruct"], tmp_path / "instruct"))
    (instruct / "special_tokens_map.json").write_text('{"eos_token": "<|im_start|>"}')
    plan, sides = plan_of({**family, "instruct": instruct})
    assert sides[0].eos_token == "<|im_start|>"
    install(instruct_side=instruct, base_eos=[], target=family["target"], out=out, plan=plan)
    assert load_tokenizer(out).eos_token == "<|im_start|>"


def test_an_ordinary_token_that_instruct_marks_special(
    family: dict[str, Path], tmp_path: Path, out: Path
) -> None:
    """CPT added `<tool>` as plain text, instruct has it as a special token."""
    instruct = Path(shutil.copytree(family["instruct"], tmp_path / "instruct"))
    target = Path(shutil.copytree(family["target"], tmp_path / "target"))
    fields = json.loads((instruct / "tokenizer.json").read_text())
    for entry in fields["added_tokens"]:
        entry["special"] = True
    (instruct / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer = load_tokenizer(target)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(str(target))
    plan, sides = plan_of({"base": family["base"], "instruct": instruct, "target": target})
    install(instruct_side=instruct, base_eos=[], target=target, out=out, plan=plan)
    merged = load_tokenizer(out)
    assert merged.get_vocab() == plan.tokens
    assert special_tokens_of(merged)[sides[1].ids["<tool>"]] == "<tool>"


def test_an_id_of_instruct_that_is_no_token(
    family: dict[str, Path], tmp_path: Path, out: Path
) -> None:
    instruct = Path(shutil.copytree(family["instruct"], tmp_path / "instruct"))
    config = json.loads((instruct / "config.json").read_text())
    plan, _ = plan_of(family)
    for value, fine in ((-1, True), (None, True), (9999, False)):
        (instruct / "config.json").write_text(json.dumps({**config, "pad_token_id": value}))
        arguments = {"base_eos": [1], "target": family["target"], "out": out}
        if fine:
            assert len(install(instruct_side=instruct, plan=plan, **arguments)) == 2
            written = json.loads((out / "config.json").read_text())
            assert written["pad_token_id"] == value
        else:
            with pytest.raises(CompatibilityError, match="pad_token_id is 9999") as caught:
                install(instruct_side=instruct, plan=plan, **arguments)
            assert caught.value.problems == ("id 9999: no token",)


def test_a_tokenizer_that_does_not_get_the_planned_map(family: dict[str, Path], out: Path) -> None:
    plan, _ = plan_of(family)
    moved = {**plan.tokens, "<|im_end|>": 290}  # tokenizers number added tokens without gaps
    with pytest.raises(CompatibilityError, match="does not have the tokens that its rows") as found:
        install(
            instruct_side=family["instruct"],
            base_eos=[],
            target=family["target"],
            out=out,
            plan=dataclasses.replace(plan, tokens=moved),
        )
    assert "id 290: '<|im_end|>' planned, None found" in found.value.problems
