"""The chat side that every variant is asked through: template, closing token, EOS tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cpt_residual.core.hashing import text_sha256
from cpt_residual.errors import CompatibilityError, EvaluationError
from cpt_residual.modeling.side_files import eos_ids_of, read_json_object

if TYPE_CHECKING:
    from cpt_residual.modeling.tokenizer import Tokenizer

__all__ = ["ChatSide"]


@dataclass(frozen=True)
class ChatSide:
    """One template and one tokenizer for all variants: all of them see the same prompt ids.

    turn_end: the token that closes a turn (the EOS token of the template owner's chat side);
    eos_token_ids: EOS ids of that side's `generation_config.json` and `config.json`.
    """

    tokenizer: Tokenizer
    template: str
    turn_end: str
    eos_token_ids: tuple[int, ...]

    @property
    def template_sha256(self) -> str:
        return text_sha256(self.template)

    @classmethod
    def of(cls, model_dir: Path) -> ChatSide:
        """The chat side of a model directory: its own, or that of its `chat/` folder."""
        from cpt_residual.modeling.chat import CHAT_FOLDER, chat_template_of, refuse_todays_date
        from cpt_residual.modeling.tokenizer import load_tokenizer

        template, tokenizer = chat_template_of(model_dir), load_tokenizer(model_dir)
        refuse_todays_date(template)
        owns = cast("object", getattr(tokenizer, "chat_template", None))
        folder = model_dir if owns else model_dir / CHAT_FOLDER
        turn_end = _eos_token(folder)
        tokenizer.chat_template = template
        tokenizer.eos_token = turn_end
        ids = {*eos_ids_of(folder), *eos_ids_of(model_dir)}
        return cls(tokenizer, template, turn_end, tuple(sorted(ids)))

    def stop_token_ids(self, base_dir: Path | None) -> tuple[int, ...]:
        """Where every response may end: the EOS ids of this side and of the family's base, and the
        token that closes a turn. The same ids for all variants, whatever their own configs say:
        a merged model stops at base's EOS too, and must not gain by it."""
        turn_end = cast("int", self.tokenizer.convert_tokens_to_ids(self.turn_end))
        base = eos_ids_of(base_dir) if base_dir is not None else ()
        return tuple(sorted({*self.eos_token_ids, *base, turn_end}))

    def check_tokenizer_of(self, model_dir: Path) -> None:
        """The variant must have the same token map: prompts are encoded once for all."""
        from cpt_residual.modeling.tokenizer import first_differing_ids, load_tokenizer

        problems = first_differing_ids(load_tokenizer(model_dir), self.tokenizer, 10)
        if problems:
            raise CompatibilityError(
                "A variant has another token map than the owner of the chat template.",
                problems=[f"variant vs template owner, {problem}" for problem in problems],
                remedy="It would read other prompts than the rest. Choose a chat_template_of "
                "from its own family.",
            )


def _eos_token(folder: Path) -> str:
    token = read_json_object(folder / "tokenizer_config.json", "chat template").get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str) or not token:
        raise EvaluationError(
            "The owner of the chat template names no token that closes a turn.",
            problems=[f"{folder.name}/tokenizer_config.json: eos_token is {token!r}"],
            remedy="Without it nobody can tell whether a response was ended or cut. "
            "Choose another model in evaluation.chat_template_of.",
        )
    return token
