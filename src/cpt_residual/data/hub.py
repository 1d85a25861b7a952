"""Documents of a data set of the Hugging Face hub, streamed at a pinned commit."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from cpt_residual.config.corpora import HubCorpus
from cpt_residual.data.documents import text_of
from cpt_residual.data.problems import BadDocumentError, Problems
from cpt_residual.errors import CorpusError

__all__ = ["read_hub"]


def read_hub(corpus: HubCorpus) -> Iterator[str]:
    """Documents in the data set's own order, until the next would pass `max_characters`.

    The same commit, configuration and split give the same documents. No code of the data set is
    ever run. One document is in memory at a time (besides what `datasets` buffers).
    """
    place = _place(corpus)
    problems = Problems(
        f"hub corpus {place}: some documents cannot be used",
        "Nothing is skipped or mended silently: choose another field, split or data set.",
    )
    num_characters = 0
    for number, record in enumerate(_records(corpus), start=1):
        try:
            text = text_of(record, f"{place} row {number}", text_field=corpus.text_field)
        except BadDocumentError as problem:
            problems.add(str(problem))
            continue
        num_characters += len(text)
        if num_characters > corpus.max_characters:
            break
        if not problems:
            yield text
    problems.raise_if_any()


def _records(corpus: HubCorpus) -> Iterator[Mapping[str, object]]:
    """Raw rows; what the network or the hub refuses becomes a `CorpusError`."""
    # `datasets` is only partly typed; this is the one place that calls it.
    load = cast("Any", importlib.import_module("datasets")).load_dataset
    try:
        rows = cast(
            "Iterable[Mapping[str, object]]",
            load(
                corpus.repo,
                name=corpus.config,
                split=corpus.split,
                revision=corpus.revision,
                streaming=True,
            ),
        )
        yield from rows
    except (OSError, ValueError, RuntimeError) as error:
        # OSError: no network, no such data set or file; ValueError: no such config or split;
        # RuntimeError: a data set that would need its own code.
        raise CorpusError(
            f"hub corpus {_place(corpus)} cannot be read",
            problems=[f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"],
            remedy="Check repo, config, split and revision, that the data set needs no code of its"
            " own, and that this machine reaches the hub.",
        ) from error


def _place(corpus: HubCorpus) -> str:
    config = f"/{corpus.config}" if corpus.config else ""
    return f"{corpus.repo}{config}[{corpus.split}]@{corpus.revision[:12]}"
