"""Model responses with stop reason and token counts, which lm-eval's plain values lack.

Both are subclasses of the type that lm-eval expects, so that every stock task takes them for what
it knows, and our own tasks read the attributes. Nothing is kept in a side table, so an answer can
never be taken for another prompt's or another model's.
"""

from __future__ import annotations

from typing import Any, Self

LENGTH = "length"
"""Stop reason of a response that was cut at its token limit."""


class Response(str):
    """A decoded response. `stop_reason` is the EOS token (as text) or the stop string that ended
    it, or `length`; `num_tokens` counts what was generated, the closing token included.

    The defaults are for lm-eval, which turns reference answers into the type of the response.
    """

    stop_reason: str
    num_tokens: int

    def __new__(cls, text: object = "", stop_reason: str = "", num_tokens: int = 0) -> Self:
        response = super().__new__(cls, text)
        response.stop_reason = stop_reason
        response.num_tokens = num_tokens
        return response

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (str(self), self.stop_reason, self.num_tokens), {}


class ScoredText(float):
    """Log likelihood (nats) of a document, and how much of the document it covers."""

    num_tokens: int
    num_bytes: int
    num_words: int

    def __new__(
        cls, log_likelihood: float, num_tokens: int, num_bytes: int, num_words: int
    ) -> Self:
        scored = super().__new__(cls, log_likelihood)
        scored.num_tokens = num_tokens
        scored.num_bytes = num_bytes
        scored.num_words = num_words
        return scored

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (float(self), self.num_tokens, self.num_bytes, self.num_words), {}
