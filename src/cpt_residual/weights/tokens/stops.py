"""Verify that a merged model stops: load it and force each EOS token id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.tokens.chat_contract import eos_token_ids, require_template

if TYPE_CHECKING:
    from torch import Tensor

    from cpt_residual.modeling.tokenizer import Tokenizer

_NUM_BEFORE_EOS = 3  # tokens generated before the one that must stop
_NUM_ROOM = 4  # tokens that generation could still make after it


def verify_stops(model: Path) -> list[int]:
    """Loads a model directory, renders its template, and shows that generation stops at every
    EOS token id. Returns the ids. Price: one load of the model, a few tokens per id.

    Each id is forced after a few other tokens; the output must end right there although there is
    room for more.
    """
    from cpt_residual.modeling.loading import load_causal_lm
    from cpt_residual.modeling.tokenizer import load_tokenizer

    side = TokenSide.read(model)
    ids = eos_token_ids(model, side)
    require_template(model, side)
    tokenizer = load_tokenizer(model)
    loaded = cast("Any", load_causal_lm(model, dtype=None, attention=None))
    prompt_BT = _render(model, tokenizer)
    filler = next(token for token in range(len(ids) + 1) if token not in ids)
    num_rows = int(loaded.config.get_text_config().vocab_size)
    problems: list[str] = [] if ids else ["no EOS token id at all"]
    for token in ids:
        if token >= num_rows:
            problems.append(f"id {token} is outside the vocabulary of {num_rows}")
            continue
        num_new = _num_generated(loaded, prompt_BT, token, filler=filler, folder=model)
        if num_new != _NUM_BEFORE_EOS + 1:
            problems.append(
                f"id {token} ({tokenizer.convert_ids_to_tokens(token)}): {num_new} tokens came, "
                f"{_NUM_BEFORE_EOS + 1} should have"
            )
    if problems:
        raise CompatibilityError(
            f"{model} does not stop at its EOS token ids",
            problems=problems,
            remedy="Its answers would run on. The eos_token_id of its generation_config.json must "
            "list all of them.",
        )
    return ids


def _num_generated(loaded: Any, prompt_BT: Tensor, token: int, *, filler: int, folder: Path) -> int:
    """How many tokens come when `token` is forced after a few of `filler`, which ends nothing."""
    import torch
    from transformers import GenerationConfig

    # The ids as transformers reads them from the directory; how it samples is not in question.
    eos = loaded.generation_config.eos_token_id
    stopping = GenerationConfig(eos_token_id=eos, pad_token_id=filler)
    loaded.generation_config = stopping
    num_prompt = int(prompt_BT.shape[1])
    script = [filler] * _NUM_BEFORE_EOS + [token] + [filler] * _NUM_ROOM
    forced = _Forced(script, num_prompt)
    with cast("Any", torch.random).fork_rng(devices=[]):
        output_BT = cast(
            "Tensor",
            loaded.generate(
                prompt_BT,
                attention_mask=torch.ones_like(prompt_BT),
                logits_processor=[forced],
                generation_config=stopping,
                max_new_tokens=len(script),
                trust_remote_code=False,
            ),
        )
    if not forced.finite:
        raise CompatibilityError(
            f"{folder}: the logits of the model are not finite",
            problems=["NaN or Inf after its own chat template"],
            remedy="Every answer and score of it would be a blind guess. Look for NaN or Inf in "
            "its weights, or values that overflow their dtype.",
        )
    return int(output_BT.shape[1]) - num_prompt


class _Forced:
    """Makes generation emit a script, whatever the model says; `finite`: it said something."""

    def __init__(self, script: Sequence[int], num_prompt: int) -> None:
        self._script = script
        self._num_prompt = num_prompt
        self.finite = True

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        import torch

        self.finite &= bool(torch.isfinite(scores_BV.amax(dim=-1)).all())  # -Inf is a mask
        forced_BV = torch.full_like(scores_BV, -torch.inf)
        forced_BV[:, self._script[int(ids_BT.shape[1]) - self._num_prompt]] = 0.0
        return forced_BV


def _render(model: Path, tokenizer: Tokenizer) -> Tensor:
    """The ids of a short prompt."""
    from cpt_residual.modeling.chat import chat_template_of
    from cpt_residual.modeling.templates import ChatTemplate
    from cpt_residual.modeling.tokenizer import named_tokens

    template = ChatTemplate.of(chat_template_of(model), named_tokens(tokenizer))
    encoded = cast("Any", tokenizer)(
        template.question(), add_special_tokens=False, return_tensors="pt"
    )
    return cast("Tensor", encoded["input_ids"])
