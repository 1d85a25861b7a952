"""Added tokens of a tokenizer in the texts of a corpus: what becomes of them, counted.

A token that is marked special has a meaning for whoever runs the model: it opens or ends a text or
a turn. The text of one stays text, in as many ids as its characters need, or any web page could
forge an end. A token that is not (`<tool_call>` of Qwen, the runs of spaces of GPT-NeoX, the line
feeds of Gemma) is vocabulary by its maker's own word: the released model met its id wherever the
text stood, and would meet a split of it nowhere else. Either way decoding gives the text back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cpt_residual.modeling.encoded import NO_USES, EncodedDocuments, Uses


@dataclass(frozen=True)
class AddedTokens:
    """Contents by id. `special`: their text stays text; `ordinary`: it becomes the id (without the
    tokens that open and end documents, which every document has)."""

    special: Mapping[int, str]
    ordinary: Mapping[int, str]

    def uses(self, texts: Sequence[str], encoded: EncodedDocuments) -> Uses:
        """How often each text has the text of a special token (none are looked for where `texts`
        is empty), and how often each document has the id of an ordinary one."""
        found = Counter(
            (document, self._special_id[content])
            for document, text in enumerate(texts)
            for content in self._pattern.findall(text)
        )
        lookup = np.array([*self.ordinary], dtype=np.uint32)
        at = np.flatnonzero(np.isin(encoded.ids, lookup)) if len(lookup) else lookup
        documents = np.searchsorted(encoded.starts, at, side="right") - 1
        pairs = zip(documents.tolist(), encoded.ids[at].tolist(), strict=True)
        found.update(pairs)
        rows = [(*key, count) for key, count in sorted(found.items())]
        return np.array(rows, dtype=np.int64) if rows else NO_USES

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """The longest special token first; never a match where there is none."""
        contents = sorted(self.special.values(), key=lambda content: (-len(content), content))
        return re.compile("|".join(map(re.escape, contents)) or "(?!)")

    @cached_property
    def _special_id(self) -> dict[str, int]:
        return {content: token_id for token_id, content in self.special.items()}


NO_ADDED_TOKENS = AddedTokens({}, {})
