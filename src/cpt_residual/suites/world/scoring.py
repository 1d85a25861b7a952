"""Scores of a response to a probe. lm-eval calls these functions by name.

A response counts as closed when it was ended by the token that closes a turn (`turn_end` of the
document), rather than by the document separator or the token limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from cpt_residual.data.world.checks import follows, states_fact
from cpt_residual.evaluation.documents import as_split, read_documents
from cpt_residual.evaluation.responses import Response

Metrics = dict[str, Any]


def load_probes(*, file: str, turn_end: str, **_added: object) -> Any:
    """Probe rows, each kept as the JSON text it was read from (a table would merge the checks)."""
    rows = [
        {"prompt": row["prompt"], "row": json.dumps(row), "turn_end": turn_end}
        for row in read_documents(file, field="prompt")
    ]
    return as_split(rows, file)


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
