"""The door of the tokenizer files: whatever they hold, a verb ends right or with our error, and
leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from pydantic import JsonValue

from cpt_residual import api
from cpt_residual.errors import CptResidualError
from cpt_residual.modeling.chat_check import check_chat_side
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.modeling.tokenizer import load_tokenizer
from support.cli_family import make

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    *(
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "processor_config.json",
    ),
)
ODD: tuple[JsonValue, ...] = (
    *(None, True, -1, 2**70, 1.5, "", "text", "\ud800", "a\u0000b", "日本"),
    *([], [[7]], [None], {}, {"content": None}, {"content": "<|x|>"}),
)


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One change to the bytes, or to a value of the document."""
    kind = rng.randrange(8)
    if kind == 0:
        return raw[: rng.randrange(len(raw))]
    if kind == 1:
        at = rng.randrange(len(raw))
        return raw[:at] + bytes([rng.choice((0xFF, 0x00, 0x7B, 0x22))]) + raw[at + 1 :]
    try:
        document = cast("JsonValue", json.loads(raw))
    except ValueError:
        return rng.choice((b"", b"{% if", b"{{ 1 / 0 }}", b"{{ messages.x.y }}", b"\xff\xfe"))
    if kind == 2:
        return b'{"a": 1, "a": 2, ' + raw.lstrip()[1:]
    if kind == 3:
        return json.dumps(rng.choice(ODD)).encode()
    _change(document, rng)
    return json.dumps(document).encode()


def _change(document: JsonValue, rng: random.Random) -> None:
    """Drops or replaces one value, at any depth; containers with few entries are entered first."""
    place = document
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        child = place[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
        if isinstance(child, dict | list) and child and rng.random() < 0.6:
            place = child
            continue
        if rng.random() < 0.4:
            del place[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
        else:
            place[key] = rng.choice(ODD)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the time, and nothing here is about a crash of the machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make(tmp_path_factory.mktemp("models"))
    instruct = root / "instruct"
    generation = {"eos_token_id": [4, 1], "temperature": 0.6, "top_k": 5, "stop_strings": ["x"]}
    (instruct / "generation_config.json").write_text(json.dumps(generation))
    roles = {"eos_token": {"content": "<|endoftext|>", "lstrip": False}, "pad_token": "<pad>"}
    (instruct / "special_tokens_map.json").write_text(json.dumps(roles))
    (instruct / "added_tokens.json").write_text(json.dumps({"<|end|>": 4}))
    (instruct / "processor_config.json").write_text(json.dumps({"processor_class": "X", "a": {}}))
    return root


def verbs(root: Path, out: Path) -> dict[str, Callable[[], object]]:
    instruct = root / "instruct"
    pair = api.Pair(root / "base", instruct)
    options = api.ApplyOptions(verify=False)
    return {
        "check": lambda: check_chat_side(instruct),
        "tokens": lambda: TokenSide.read(instruct),
        "load": lambda: load_tokenizer(instruct),
        "compute": lambda: api.compute(root / "base", instruct, out / "residual"),
        "apply": lambda: api.apply(root / "cpt", pair, out / "merged", options=options),
    }


WRITING = ("compute", "apply")


def fuzz(models: Path, out: Path, seeds: range, *, writes: int) -> None:
    """`writes`: how many of the verbs that write are run for each seed, in turn."""
    wrong: list[str] = []
    original = {name: (models / "instruct" / name).read_bytes() for name in FILES}
    for seed in seeds:
        rng = random.Random(seed)
        name = rng.choice(FILES)
        path = models / "instruct" / name
        path.write_bytes(mutate(original[name], rng))
        passed_over = {WRITING[(seed + number) % 2] for number in range(2 - writes)}
        for verb, call in verbs(models, out).items():
            if verb in passed_over:
                continue
            before = {entry.name for entry in out.iterdir()}
            try:
                call()
            except CptResidualError as error:
                if {entry.name for entry in out.iterdir()} != before or not str(error):
                    wrong.append(f"seed {seed} {name} {verb}: left something behind")
            except BaseException as error:  # noqa: BLE001 - a panic of the library too
                wrong.append(f"seed {seed} {name} {verb}: {type(error).__name__}: {error}"[:200])
        for entry in out.iterdir():
            shutil.rmtree(entry)
        path.write_bytes(original[name])
    assert not wrong, "\n".join(wrong)


def test_a_hundred_mutations(models: Path, tmp_path: Path) -> None:
    fuzz(models, tmp_path, range(100), writes=1)


@pytest.mark.slow
def test_many_mutations(models: Path, tmp_path: Path) -> None:
    fuzz(models, tmp_path, range(700), writes=2)
