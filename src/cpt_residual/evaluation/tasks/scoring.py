"""What our lm-eval tasks do with a document and a response. lm-eval calls these by name.

A response counts as closed when it was ended by the token that closes a turn (`turn_end` of the
document), rather than by the document separator or the token limit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cpt_residual.data.world.checks import follows, states_fact
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.lazy_import import lazy_import
from cpt_residual.evaluation.responses import Response, ScoredText

Metrics = dict[str, Any]


# --- documents -----------------------------------------------------------------------------------
def load_probes(*, file: str, turn_end: str, **_added: object) -> Any:
    """Probe rows, each kept as the JSON text it was read from (a table would merge the checks)."""
    rows = [
        {
            "prompt": _text_field(row, "prompt", file, number),
            "row": json.dumps(row),
            "turn_end": turn_end,
        }
        for number, row in _rows(Path(file))
    ]
    return _table(rows, file)


def load_texts(*, file: str, max_documents: int, **_added: object) -> Any:
    """The first `max_documents` held-out documents."""
    rows = [
        {"text": _text_field(row, "text", file, number)}
        for number, row in _rows(Path(file))
        if number <= max_documents
    ]
    return _table(rows, file)


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row: object = json.loads(line)
            except ValueError as error:
                raise _bad_line(file, number, f"not JSON ({error})") from error
            if not isinstance(row, dict):
                raise _bad_line(file, number, "not a JSON object")
            yield number, cast("Mapping[str, object]", row)


def _text_field(row: Mapping[str, object], field: str, file: str, number: int) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise _bad_line(Path(file), number, f"field '{field}' is {value!r}, not a text")
    return value


def _bad_line(file: Path, number: int, problem: str) -> EvaluationError:
    return EvaluationError(
        "A file of evaluation documents cannot be read.",
        problems=[f"{file.name} line {number}: {problem}"],
        remedy="Every line must be a JSON object with that field.",
    )


def _table(rows: Sequence[Mapping[str, str]], file: str) -> Any:
    if not rows:
        raise EvaluationError(
            "A file of evaluation documents is empty.",
            problems=[Path(file).name],
            remedy="Without documents there is no score. Ask for at least one held-out document.",
        )
    table = lazy_import("datasets").Dataset.from_list([dict(row) for row in rows])
    return {"test": table}


# --- scores of one response ----------------------------------------------------------------------
def score_instructions(doc: Mapping[str, str], results: Sequence[Response]) -> Metrics:
    """Strict and loose, with and without the turn-closing requirement, per prompt and per check.

    Strict and loose are IFEval's. `obeyed_and_right`: all checks hold, the fact is right, and the
    turn is closed; only for probes that know the right answer.
    """
    response, row = results[0], cast("Mapping[str, Any]", json.loads(doc["row"]))
    closed = response.stop_reason == doc["turn_end"]
    strict = [follows(response, check) for check in row["checks"]]
    loose = [follows(response, check, loose=True) for check in row["checks"]]
    metrics: Metrics = {}
    for name, held in (("strict", strict), ("loose", loose)):
        metrics[f"prompt_level_{name}_acc"] = closed and all(held)
        metrics[f"inst_level_{name}_acc"] = [closed and each for each in held]
        metrics[f"prompt_level_{name}_acc_open"] = all(held)
        metrics[f"inst_level_{name}_acc_open"] = held
    if row.get("answer") is not None:
        right = states_fact(response, row["answer"], row.get("distractors", ()))
        metrics["obeyed_and_right"] = closed and all(strict) and right
    return metrics | {"closed_share": closed, f"type/{row['type']}": closed and all(strict)}


def score_fact(doc: Mapping[str, str], results: Sequence[Response]) -> Metrics:
    """`accuracy`: the right value and no wrong one; closing the turn is not asked for."""
    response, row = results[0], cast("Mapping[str, Any]", json.loads(doc["row"]))
    right = states_fact(response, row["answer"], row["distractors"])
    return {"accuracy": right, "closed_share": response.stop_reason == doc["turn_end"]}


def score_text(doc: Mapping[str, str], results: Sequence[ScoredText]) -> Metrics:
    """Pairs (log likelihood in nats, what it is spread over), to be summed over documents."""
    del doc
    scored = results[0]
    return {
        "bits_per_byte": (float(scored), scored.num_bytes),
        "token_perplexity": (float(scored), scored.num_tokens),
        "word_perplexity": (float(scored), scored.num_words),
    }


# --- aggregation over documents ------------------------------------------------------------------
def flat_mean(items: Sequence[Sequence[bool]]) -> float:
    """Mean over all checks of all prompts (IFEval's instruction level)."""
    flat = [each for item in items for each in item]
    return sum(flat) / len(flat) if flat else math.nan


def bits_per_byte(items: Sequence[tuple[float, int]]) -> float:
    """Bits needed per byte of the documents."""
    return bits_of_nats(_nats_per_unit(items))


def perplexity(items: Sequence[tuple[float, int]]) -> float:
    """exp of the mean negative log likelihood per token or word."""
    return exp_of_nats(_nats_per_unit(items))


def bits_of_nats(nats: float) -> float:
    """1 nat is 1 / ln 2 bits."""
    return nats / math.log(2)


def exp_of_nats(nats: float) -> float:
    """exp, infinite where a float ends."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _nats_per_unit(items: Sequence[tuple[float, int]]) -> float:
    log_likelihood, units = math.fsum(pair[0] for pair in items), sum(pair[1] for pair in items)
    return -log_likelihood / units if units else math.nan
