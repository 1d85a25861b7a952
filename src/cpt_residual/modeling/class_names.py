"""What a model class makes of the tensors of a checkpoint: the class's own name for each of them,
which have one row per token, which repeat another one, and which nothing reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cpt_residual.errors import CompatibilityError

RowPart = Literal["embeddings", "head"]

_IS_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight$")
_LEFT_OVER = re.compile(
    r"(?:attn|attention)\.(?:masked_bias|bias)$|\.causal_mask$|rotary_emb\.inv_freq$"
)


@dataclass(frozen=True)
class ClassNames:
    """How a class reads the tensors of one checkpoint.

    names: the stored name of every tensor that is read, and the class's name for it (a tensor that
    the class joins with others, such as one expert's, keeps a name that is its alone); a tensor
    that the class neither reads nor knows to be left over is among them under its stored name.
    unread: stored names that no parameter reads, by the class's rules. rows: class names of the
    tensors with one row per token. tied: class names, to the class name whose values they repeat.
    text: class names to those of the text-only class of the same family, of a model that reads
    images or sounds too. aside: stored names that `text_part` has left out.
    unknown: why the class cannot be asked; all but `names` is then empty.
    """

    class_name: str
    names: Mapping[str, str]
    unread: tuple[str, ...] = ()
    rows: Mapping[str, RowPart] = field(default_factory=dict[str, RowPart])
    tied: Mapping[str, str] = field(default_factory=dict[str, str])
    text: Mapping[str, str] = field(default_factory=dict[str, str])
    aside: tuple[str, ...] = ()
    unknown: str = ""

    def holds_text_of(self, own_names: Iterable[str]) -> bool:
        """Whether a text-only class with parameters of these names is a part of this class."""
        return bool(self.text) and set(own_names) <= set(self.text.values())

    def text_part(self) -> ClassNames:
        """The same by the names of the text-only class, without all that is no text."""
        text = self.text
        return replace(
            self,
            names={name: text[own] for name, own in self.names.items() if own in text},
            aside=tuple(name for name, own in self.names.items() if own not in text),
            rows={text[own]: part for own, part in self.rows.items() if own in text},
            tied={text[a]: text[b] for a, b in self.tied.items() if a in text and b in text},
            text={},
        )

    def spelled(self, spelling: Mapping[str, str]) -> ClassNames:
        """The same with other names for those of `spelling`."""
        names = {spelling.get(name, name): own for name, own in self.names.items()}
        return replace(self, names=names)

    def stored_twice(self) -> list[str]:
        """Tensors that are stored under two names that the class reads as one."""
        first: dict[str, str] = {}
        pairs = [(first.setdefault(own, name), name) for name, own in self.names.items()]
        return [f"{a} and {b}: one parameter" for a, b in pairs if a != b]

    def rows_by_name(self) -> dict[str, RowPart]:
        """The tensors with one row per token."""
        return {name: self.rows[own] for name, own in self.names.items() if own in self.rows}

    def tied_by_name(self) -> dict[str, str]:
        """Tied tensors and what they repeat; by the class's name what is not stored."""
        name_of = {own: name for name, own in self.names.items()}
        return {name_of.get(a, a): name_of.get(b, b) for a, b in self.tied.items()}

    def require_known(self, role: str) -> None:
        """Raises CompatibilityError where the class cannot be asked."""
        if self.unknown:
            raise CompatibilityError(
                f"{role}: which tensors have one row per token cannot be told",
                problems=[self.unknown],
                remedy="The model class says it, and it cannot be built. Leave embedding_rows, "
                "scales and vocab_policy at their defaults and give models with the same tokens, "
                "or install a transformers that knows the class.",
            )

    def require_known_ties(self, role: str, *, tied: bool) -> None:
        """Raises CompatibilityError where the class cannot be asked whether a stored head repeats
        the embedding although config.json says `tied`."""
        heads = [name for name in self.names if _IS_HEAD.search(name)]
        if self.unknown and tied and heads:
            raise CompatibilityError(
                f"{role}: config.json says tie_word_embeddings, and {heads[0]} is stored",
                problems=[self.unknown],
                remedy="The model class says what it repeats, and it cannot be built: whether both "
                "are the same cannot be proven. Save the model again without the head, or install "
                "a transformers that knows the class.",
            )


def is_left_over(name: str) -> bool:
    """Whether a tensor of this name, if no parameter of its class reads it, is a constant that
    older versions of transformers stored beside the weights: causal masks, rotary frequencies."""
    return _LEFT_OVER.search(name) is not None
