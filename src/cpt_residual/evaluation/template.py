"""The chat side that every variant is asked through: template, closing token, EOS tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cpt_residual.core.hashing import text_sha256
from cpt_residual.errors import CompatibilityError, CptResidualError, EvaluationError
from cpt_residual.modeling.side_files import eos_ids_of, read_json_object
from cpt_residual.modeling.templates import TEMPLATE_DATE, ChatTemplate

if TYPE_CHECKING:
    from cpt_residual.modeling.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChatSide:
    """One template and one tokenizer for all variants: all of them see the same prompt ids.

    template: None where nothing is asked through it and it cannot be used; template_text: as the
    release has it, empty for none. turn_end: the token that closes a turn (the EOS token of the
    template owner's chat side); eos_token_ids: EOS ids of that side's `generation_config.json` and
    `config.json`.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    template_text: str
    turn_end: str
    eos_token_ids: tuple[int, ...]

    @property
    def template_facts(self) -> dict[str, str]:
        """What a result says of the template; of one that asks for today's date, which it got."""
        text = self.template_text
        facts = {"chat_template_sha256": text_sha256(text)} if text else {}
        if self.template is not None and self.template.has_date:
            facts["chat_template_date"] = TEMPLATE_DATE.isoformat()
        return facts

    @classmethod
    def of(cls, model_dir: Path, *, asks: bool = True) -> ChatSide:
        """The chat side of a model directory: its own, or that of its `chat/` folder. `asks`:
        something is asked through the template, so it has to work."""
        from cpt_residual.modeling.chat import CHAT_FOLDER, chat_template_of
        from cpt_residual.modeling.tokenizer import load_tokenizer, named_tokens

        tokenizer = load_tokenizer(model_dir)
        owns = cast("object", getattr(tokenizer, "chat_template", None))
        folder = model_dir / CHAT_FOLDER
        folder = model_dir if owns or not folder.is_dir() else folder
        turn_end = _eos_token(folder)
        tokenizer.eos_token = turn_end
        text, template = "", None
        try:
            text = chat_template_of(model_dir)
            template = ChatTemplate.of(text, named_tokens(tokenizer))
            _require_lone_questions(template, folder)
        except CptResidualError:
            if asks:
                raise
            template = None
        tokenizer.chat_template = template.source if template else None
        ids = {*eos_ids_of(folder), *eos_ids_of(model_dir)}
        return cls(tokenizer, template, text, turn_end, tuple(sorted(ids)))

    def stop_token_ids(self, base_dir: Path | None) -> tuple[int, ...]:
        """Where every response may end: the EOS ids of this side and of the family's base, and the
        token that closes a turn. The same ids for all variants, whatever their own configs say:
        a merged model stops at base's EOS too, and must not gain by it."""
        turn_end = cast("int", self.tokenizer.convert_tokens_to_ids(self.turn_end))
        base = eos_ids_of(base_dir) if base_dir is not None else ()
        return tuple(sorted({*self.eos_token_ids, *base, turn_end}))

    def check_tokenizer_of(self, model_dir: Path) -> None:
        """The variant must have the same token map: prompts are encoded once for all."""
        from cpt_residual.modeling.token_side import first_differing_ids
        from cpt_residual.modeling.tokenizer import load_tokenizer

        problems = first_differing_ids(load_tokenizer(model_dir), self.tokenizer, 10)
        if problems:
            raise CompatibilityError(
                "A variant has another token map than the owner of the chat template.",
                problems=[f"variant vs template owner, {problem}" for problem in problems],
                remedy="It would read other prompts than the rest. Choose a chat_template_of "
                "from its own family.",
            )


def require_chat(template_dir: Path, base_dir: Path | None, *, asks: bool) -> None:
    """The template's owner closes its turns with known tokens and, where a suite asks through the
    template (`asks`), a prompt is rendered. Raises CompatibilityError or EvaluationError."""
    ChatSide.of(template_dir, asks=asks).stop_token_ids(base_dir)


def require_tokens(template_dir: Path, model_dir: Path) -> None:
    """CompatibilityError when a variant reads other tokens than the template's owner."""
    if template_dir != model_dir:
        ChatSide.of(template_dir, asks=False).check_tokenizer_of(model_dir)


def _require_lone_questions(template: ChatTemplate, folder: Path) -> None:
    if template.needs_system:
        raise CompatibilityError(
            f"the chat template in {folder} refuses a dialogue without a system turn",
            remedy="Evaluations ask a question alone. Choose another model in "
            "evaluation.chat_template_of.",
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
