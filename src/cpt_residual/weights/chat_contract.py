"""The chat contract: a merged model answers like instruct, and stops like it.

A merged directory gets instruct's tokenizer, chat template, special ids and generation config,
with the *union* of the end-of-text ids of base and instruct in config.json and
generation_config.json. `verify_stops` then loads the directory and shows that generation ends at
every one of them. (Keeping the target's generation config is how merged models come to run on:
measured 60 tokens instead of 6.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import JsonValue
from torch import Tensor

from cpt_residual.core.files import write_json_atomic
from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_FILES,
    copy_files,
    eos_ids_of,
    read_json_object,
)
from cpt_residual.modeling.tokenizer import Tokenizer, load_tokenizer

_SPECIAL_IDS = ("bos_token_id", "pad_token_id")
_NUM_BEFORE_EOS = 3  # tokens generated before the one that must stop
_NUM_ROOM = 4  # tokens that generation could still make after it


def copy_instruct_side(model: Path, folder: Path) -> None:
    """Copies what a chat needs from instruct: tokenizer, template, config, generation config."""
    folder.mkdir()
    copy_files(model, folder, (CONFIG_FILE, GENERATION_FILE))
    if not copy_files(model, folder, TOKENIZER_FILES):
        raise CompatibilityError(
            f"instruct: {model} has no tokenizer files",
            remedy="The merged model would have nothing to speak with. Add the tokenizer files of "
            "the release to the directory.",
        )


def eos_token_ids(model: Path) -> list[int]:
    """Every id that ends a text of this model: generation config, config, tokenizer; in this
    order, each once."""
    eos: object = load_tokenizer(model).eos_token_id
    return _union([*eos_ids_of(model), *([eos] if isinstance(eos, int) else [])])


def install(*, instruct_side: Path, base_eos: Sequence[int], target: Path, out: Path) -> list[int]:
    """Writes tokenizer, template, config.json and generation_config.json of the merged model.

    `instruct_side` is the folder that `copy_instruct_side` has made; `target` gives config.json.
    Returns the union of end-of-text ids: instruct's first, then base's and target's.
    """
    _require_template(instruct_side)
    ids = _union([*eos_token_ids(instruct_side), *base_eos, *eos_token_ids(target)])
    eos: JsonValue = ids[0] if len(ids) == 1 else [*ids]
    copy_files(instruct_side, out, TOKENIZER_FILES)
    config = read_json_object(target / CONFIG_FILE, "target")
    instruct_config = read_json_object(instruct_side / CONFIG_FILE, "instruct")
    for field in _SPECIAL_IDS:
        if field in instruct_config:
            config[field] = instruct_config[field]
    write_json_atomic(out / CONFIG_FILE, {**config, "eos_token_id": eos})
    generation: dict[str, JsonValue] = {}
    if (instruct_side / GENERATION_FILE).is_file():
        generation = read_json_object(instruct_side / GENERATION_FILE, "instruct")
    write_json_atomic(out / GENERATION_FILE, {**generation, "eos_token_id": eos})
    return ids


def verify_stops(model: Path) -> list[int]:
    """Loads a model directory, renders its template, and shows that generation stops at every
    end-of-text id. Returns the ids. Price: one load of the model, a few tokens per id.

    Each id is forced after a few other tokens; the output must end right there although there is
    room for more.
    """
    ids = eos_token_ids(model)
    tokenizer = load_tokenizer(model)
    _require_template(model)
    loaded = cast("Any", load_causal_lm(model, dtype=None, attention=None))
    prompt_BT = _render(tokenizer)
    num_prompt = int(prompt_BT.shape[1])
    filler = next(token for token in range(len(ids) + 1) if token not in ids)
    problems: list[str] = [] if ids else ["no end-of-text id at all"]
    for token in ids:
        if token >= int(loaded.config.vocab_size):
            problems.append(f"id {token} is outside the vocabulary of {loaded.config.vocab_size}")
            continue
        script = [filler] * _NUM_BEFORE_EOS + [token] + [filler] * _NUM_ROOM
        with cast("Any", torch.random).fork_rng(devices=[]):
            output_BT = cast(
                "Tensor",
                loaded.generate(
                    prompt_BT,
                    attention_mask=torch.ones_like(prompt_BT),
                    logits_processor=[_Forced(script, num_prompt)],
                    max_new_tokens=len(script),
                ),
            )
        num_new = int(output_BT.shape[1]) - num_prompt
        if num_new != _NUM_BEFORE_EOS + 1:
            problems.append(
                f"id {token} ({tokenizer.convert_ids_to_tokens(token)}): {num_new} tokens came, "
                f"{_NUM_BEFORE_EOS + 1} should have"
            )
    if problems:
        raise CompatibilityError(
            f"{model} does not stop at its end-of-text ids",
            problems=problems,
            remedy="Its answers would run on. The eos_token_id of its generation_config.json must "
            "list all of them.",
        )
    return ids


class _Forced:
    """Makes generation emit a script, whatever the model says."""

    def __init__(self, script: Sequence[int], num_prompt: int) -> None:
        self._script = script
        self._num_prompt = num_prompt

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        forced_BV = torch.full_like(scores_BV, -torch.inf)
        forced_BV[:, self._script[int(ids_BT.shape[1]) - self._num_prompt]] = 0.0
        return forced_BV


def _render(tokenizer: Tokenizer) -> Tensor:
    rendered = cast("Any", tokenizer).apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    return cast("Tensor", rendered["input_ids"])


def _require_template(folder: Path) -> None:
    if not cast("Any", load_tokenizer(folder)).chat_template:
        raise CompatibilityError(
            f"instruct: the tokenizer in {folder} has no chat template",
            remedy="Without it nobody knows how to ask the merged model. Add chat_template.jinja "
            "of the release to the instruct model's directory.",
        )


def _union(ids: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(ids))
