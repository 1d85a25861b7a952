"""Documents of a data set of the Hugging Face hub, streamed at a pinned commit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

from cpt_residual.config.corpora import HubCorpus
from cpt_residual.data.documents.problems import BadDocumentError, Problems
from cpt_residual.data.documents.record import Record
from cpt_residual.data.readers.base import BadRows, Fields, ReadLedger, record_of
from cpt_residual.errors import CorpusError
from cpt_residual.launch.hub import connection_errors, network_errors

_FETCH_FIRST = (
    "This machine does not reach the hub. On one that does, with the same paths.root, run the same "
    "command with --prefetch: it builds what needs the network, and nothing else."
)


class HubReader:
    """Documents in the data set's own order, until the next would pass `max_characters`; to be
    read once.

    The same commit, configuration and split give the same documents. No code of the data set is
    ever run. One document is in memory at a time (besides what `datasets` buffers).
    """

    def __init__(self, corpus: HubCorpus, *, fields: Fields) -> None:
        self._corpus, self._fields = corpus, fields
        problems = Problems(
            f"hub corpus {_place(corpus)}: some documents cannot be used",
            "Nothing is skipped or fixed silently: choose another field, split or data set, or "
            "leave such rows out, counted: bad_lines=skip.",
        )
        self._bad = BadRows(corpus.bad_lines, problems)
        self._num_documents = self._num_characters = 0

    def __iter__(self) -> Iterator[Record]:
        """Once something is wrong no further document comes; the problems are collected, then
        raised as one `CorpusError`, and so is what the network or the hub refuses."""
        where = _place(self._corpus)
        for number, row in enumerate(_rows(self._corpus), start=1):
            place = f"{where} row {number}"
            try:
                record = record_of(row, place, self._fields)
            except BadDocumentError as problem:
                self._bad.other(place, str(problem).removeprefix(place).removeprefix(": "))
                continue
            if self._num_characters + len(record.text) > self._corpus.max_characters:
                break
            self._num_documents += 1
            self._num_characters += len(record.text)
            if not self._bad.halted:
                yield record
        self._bad.finish(self._num_documents)
        if self._num_documents == 0:
            raise CorpusError(
                f"hub corpus {where} gave no document",
                remedy="There is nothing to train on: raise max_characters "
                f"({self._corpus.max_characters:,}), or choose another config or split.",
            )

    def ledger(self) -> ReadLedger:
        """What was read; to be asked after the last document."""
        return ReadLedger(
            documents=self._num_documents,
            characters=self._num_characters,
            bad_rows_skipped=self._bad.num_skipped,
            first_bad_rows=tuple(self._bad.first),
        )


def _rows(corpus: HubCorpus) -> Iterator[Mapping[str, object]]:
    """Raw rows; what the network or the hub refuses becomes a `CorpusError`."""
    # `datasets` is only partly typed; this is the one place that calls it.
    library = cast("Any", importlib.import_module("datasets"))
    refusals = (
        *network_errors(),
        library.exceptions.DatasetsError,
        ValueError,
        RuntimeError,
        OverflowError,  # a date that Python cannot hold
    )
    try:
        # With `hf://`, a folder or a format of that name is never taken for the data set.
        builder = library.load_dataset_builder(
            f"hf://datasets/{corpus.repo}", name=corpus.config, revision=corpus.revision
        )
        _check_commit(builder.hash, corpus)
        yield from builder.as_streaming_dataset(split=corpus.split)
    except refusals as error:
        # ValueError: no such config or split; RuntimeError: a data set that needs its own code.
        raise CorpusError(
            f"hub corpus {_place(corpus)} cannot be read",
            problems=[f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"],
            remedy=_remedy(error, corpus),
        ) from error


def _check_commit(found: object, corpus: HubCorpus) -> None:
    """Without a network `datasets` silently takes what its cache has of any other commit."""
    if found != corpus.revision:
        raise CorpusError(
            f"hub corpus {_place(corpus)}: what was found is not the commit that is pinned",
            problems=[
                f"pinned: {corpus.revision}",
                f"found:  {found} (in the cache of `datasets`)",
            ],
            remedy=_FETCH_FIRST,
        )


def _remedy(error: Exception, corpus: HubCorpus) -> str:
    if isinstance(error, OverflowError):
        return (
            "A row holds a date or number that Python cannot hold. Choose another config or split,"
            " or download the files and leave that column out."
        )
    if "revision" in str(error).lower():
        return (
            f"Commit {corpus.revision} is not there: the data set was changed since it was pinned,"
            " or the commit is mistyped. Pin a commit of its history, which is another corpus."
        )
    if isinstance(error, connection_errors()):
        return _FETCH_FIRST
    return (
        "Check repo, config, split and revision, that the data set needs no code of its own, that"
        " you may read it (`hf auth login`), and that this machine reaches the hub."
    )


def _place(corpus: HubCorpus) -> str:
    config = f"/{corpus.config}" if corpus.config else ""
    return f"{corpus.repo}{config}[{corpus.split}]@{corpus.revision[:12]}"
