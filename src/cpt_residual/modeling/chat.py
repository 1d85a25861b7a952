"""The chat side of a model: its template, how dialogues become tokens, and where the loss is.

A base model made here carries a folder `chat/` with the instruct side of its family (template,
tokenizer config, generation config), because its first dialogues are packed before any instruct
model exists. Instruction tuning installs that folder's files; CPT carries the folder along.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpt_residual.core.files import write_json_atomic
from cpt_residual.errors import CompatibilityError, CorpusError
from cpt_residual.modeling.encoded import Encoded, EncodedDocuments
from cpt_residual.modeling.side_files import (
    CHAT_FOLDER,
    CONFIG_FILE,
    GENERATION_FILE,
    TEMPLATE_FILES,
    TOKENIZER_CONFIG_FILE,
    read_json_object,
)
from cpt_residual.modeling.templates import DEFAULT, ChatTemplate, Messages, read_templates
from cpt_residual.modeling.text_encoder import require_room
from cpt_residual.modeling.tokenizer import (
    Tokenizer,
    added_tokens_of,
    backend_of,
    named_tokens,
    special_tokens_of,
)

_CHAT_FILES = (TEMPLATE_FILES[0], TOKENIZER_CONFIG_FILE, GENERATION_FILE)

TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""`<|user|>question<|assistant|>answer<|end|>`: the template of the models made from nothing."""

_MAX_LISTED = 20


def chat_template_of(model_dir: Path) -> str:
    """The default template of a model directory: its tokenizer's own, else that of its `chat/`
    folder."""
    named: list[str] = []
    for folder in (model_dir, model_dir / CHAT_FOLDER):
        templates = read_templates(folder)
        if DEFAULT in templates:
            return templates[DEFAULT]
        named += templates
    raise CompatibilityError(
        f"{model_dir} has no chat template",
        problems=[
            f"neither {TEMPLATE_FILES[0]}, nor one in {TOKENIZER_CONFIG_FILE}, nor a chat/ folder"
        ]
        + [f"there is '{name}', but none of them is the default" for name in named],
        remedy="Dialogues cannot be rendered: take the template of an instruct model.",
    )


def write_chat_folder(
    model_dir: Path, *, chat_template: str, end_token: str, end_ids: Sequence[int]
) -> None:
    """Write `chat/` below `model_dir` (which has its tokenizer already).

    `end_token` closes an assistant's turn; `end_ids` are all ids that stop generation, its own
    first (the EOS union).
    """
    folder = model_dir / CHAT_FOLDER
    folder.mkdir(exist_ok=True)
    config = read_json_object(model_dir / TOKENIZER_CONFIG_FILE, "model")
    base_eos = config.get("eos_token")
    config["eos_token"] = end_token
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # the base's EOS must stay special when it is no longer "the" EOS
        config["extra_special_tokens"] = [
            *(name for name in extra if name != end_token),
            *([base_eos] if base_eos not in (None, end_token) else []),
        ]
    write_json_atomic(folder / TOKENIZER_CONFIG_FILE, config)
    generation = read_json_object(model_dir / GENERATION_FILE, "model")
    generation["eos_token_id"] = list(end_ids)
    write_json_atomic(folder / GENERATION_FILE, generation)
    (folder / TEMPLATE_FILES[0]).write_text(chat_template, encoding="utf-8")


def install_chat_side(start_dir: Path, out_dir: Path) -> None:
    """Make `out_dir` (a complete model directory) a chat model.

    Installs the template, the tokenizer config and the generation config of `start_dir/chat`, and
    writes the stop ids into config.json too. A start with a template of its own needs nothing;
    one with neither is an error.
    """
    folder = start_dir / CHAT_FOLDER
    if not folder.is_dir():
        chat_template_of(start_dir)
        return
    missing = [name for name in _CHAT_FILES if not (folder / name).is_file()]
    if missing:
        raise CompatibilityError(
            f"{folder} is incomplete",
            problems=[f"{name}: missing" for name in missing],
            remedy="The tuned model could not end its turns; rebuild the start model.",
        )
    for name in _CHAT_FILES:
        shutil.copyfile(folder / name, out_dir / name)
    config = read_json_object(out_dir / CONFIG_FILE, "model")
    config["eos_token_id"] = read_json_object(folder / GENERATION_FILE, "model")["eos_token_id"]
    write_json_atomic(out_dir / CONFIG_FILE, config)


class ChatEncoder:
    """Dialogues to (ids, loss), as the template renders them and nothing added.

    The loss is on every assistant answer and on the special token that closes it, and nowhere
    else. Answers are found by rendering the dialogue up to each of them, so that training sees
    exactly the prompts of inference.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self._template = ChatTemplate.of(template, named_tokens(tokenizer))
        self._backend = backend_of(tokenizer)
        self._specials = special_tokens_of(tokenizer)
        self._added = added_tokens_of(tokenizer)
        self._is_special = np.zeros(len(tokenizer), dtype=np.bool_)
        self._is_special[list(self._specials)] = True

    def __call__(self, documents: Sequence[Messages]) -> EncodedDocuments:
        self._refuse_special_tokens(documents)
        texts = self._template.render(documents, add_generation_prompt=False)
        starts = self._answer_starts(documents, texts)
        for text in texts:  # a dialogue is never divided
            require_room(text, text)
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        encoded = EncodedDocuments.of(
            [
                self._with_loss(
                    np.array(encoding.ids, dtype=np.uint32),
                    np.array(encoding.offsets, dtype=np.int64)[:, 0],
                    answers,
                )
                for encoding, answers in zip(encodings, starts, strict=True)
            ]
        )
        return replace(encoded, uses=self._added.uses((), encoded))

    def _with_loss(
        self, ids: npt.NDArray[np.uint32], begins: npt.NDArray[np.int64], answers: Sequence[int]
    ) -> Encoded:
        loss = np.zeros(len(ids), dtype=np.bool_)
        specials = np.flatnonzero(self._is_special[ids])
        for answer in answers:
            first = int(np.searchsorted(begins, answer))
            closing = specials[specials >= first]
            if len(closing) == 0:
                raise CompatibilityError(
                    "the chat template does not close the assistant's turn with a special token",
                    remedy="A model tuned with it could never stop: use another template.",
                )
            loss[first : int(closing[0]) + 1] = True
        loss[0] = False
        return ids, loss

    def _answer_starts(
        self, documents: Sequence[Messages], texts: Sequence[str]
    ) -> list[list[int]]:
        """For each document the characters at which its answers begin in the rendered text."""
        owners: list[int] = []
        prefixes: list[Messages] = []
        for number, messages in enumerate(documents):
            for turn, message in enumerate(messages):
                if message["role"] == "assistant":
                    owners.append(number)
                    prefixes.append(messages[:turn])
        prompts = self._template.render(prefixes, add_generation_prompt=True)
        starts: list[list[int]] = [[] for _ in documents]
        for owner, prompt in zip(owners, prompts, strict=True):
            if not texts[owner].startswith(prompt):
                raise _not_a_prefix(prompt, texts[owner])
            starts[owner].append(len(prompt))
        return starts

    def _refuse_special_tokens(self, documents: Sequence[Messages]) -> None:
        problems = [
            f"'{token}' in: {message['content'][:60]!r}"
            for messages in documents
            for message in messages
            for token in self._specials.values()
            if token in message["content"]
        ]
        if problems:
            raise CorpusError(
                "some dialogues contain a special token of the tokenizer as text",
                problems=problems[:_MAX_LISTED],
                remedy="It would end or forge a turn: take it out of the corpus.",
            )


def _not_a_prefix(prompt: str, text: str) -> CompatibilityError:
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b),
        min(len(prompt), len(text)),
    )
    return CompatibilityError(
        "the chat template renders a finished dialogue unlike the prompt of its answer",
        problems=[
            f"the prompt goes on  {prompt[same : same + 60]!r}",
            f"the dialogue goes on {text[same : same + 60]!r}",
        ],
        remedy="Training would not see the prompts of inference: use another template.",
    )
