"""What the numbers of `data.py` say: medians, ratios, goals, table and figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from data_rounds import Run, Runs
from weights_report import Goal

LIMIT, OURS = "encode_batch_fast", "pack_stage"
OF_LIMIT, SAME_MEMORY = 0.9, 1.1
AHEAD = (500_000_000, 10_000_000_000)
MIB = 1 << 20
_MEASURED = ("seconds", "process_seconds", "cpu_seconds", "peak_bytes", "anonymous_bytes")

Sizes = Mapping[str, Runs]
"""Runs on each corpus, the smaller one first."""

Tokens = Mapping[str, int]
"""Tokens of the text of each corpus (EOS not counted): what every rate is of."""


def summarise(runs: Runs, text_tokens: int) -> dict[str, Any]:
    """Every raw number and the medians, by contender."""
    return {
        name: {
            "runs": [asdict(run) for run in items],
            **{
                f"median_{column}": median(getattr(run, column) for run in items)
                for column in _MEASURED
            },
            "tokens_per_second": text_tokens / _seconds(items),
            "tokens_per_second_of_the_process": text_tokens
            / median(run.process_seconds for run in items),
        }
        for name, items in runs.items()
    }


def ratios(runs: Runs) -> dict[str, Any]:
    """Tokens per second of each contender over those of the limit, in each round and of medians."""
    limit = runs.get(LIMIT)
    if not limit:
        return {}
    found: dict[str, Any] = {}
    for name, items in runs.items():
        if name != LIMIT:
            rounds = [a.seconds / b.seconds for a, b in zip(limit, items, strict=False)]
            found[name] = {
                "per_round": rounds,
                "median_of_rounds": median(rounds),
                "of_medians": _seconds(limit) / _seconds(items),
                "of_medians_whole_process": _seconds(limit)
                / median(run.process_seconds for run in items),
            }
    return found


def goals(sizes: Sizes) -> dict[str, Goal]:
    """The goals of the project. Speed is judged on the larger corpus."""
    small, large = list(sizes)
    speed = ratios(sizes[large]).get(OURS, {})
    peaks = {name: _peak(runs[OURS]) for name, runs in sizes.items() if OURS in runs}
    grown = peaks[large] / peaks[small] if len(peaks) == len(sizes) else None
    return {
        f"{large}: tokens/s of the pack stage over the limit": Goal(
            speed.get("of_medians"), OF_LIMIT, at_least=True, note="medians"
        ),
        f"peak memory of the pack stage, {large} over {small}": Goal(grown, SAME_MEMORY),
    }


def ahead(runs: Runs, text_tokens: int) -> dict[str, float]:
    """Seconds that the pack stage would take for more tokens, at its rate on this corpus."""
    if OURS not in runs:
        return {}
    rate = text_tokens / _seconds(runs[OURS])
    return {str(tokens): tokens / rate for tokens in AHEAD}


def table(sizes: Sizes, tokens: Tokens, found: Mapping[str, Goal]) -> str:
    """Medians by contender, what lies ahead, and the goals."""
    columns = ("M tokens/s", "of limit", "seconds", "process s", "CPU s", "peak MiB", "anon MiB")
    lines: list[str] = []
    for name, runs in sizes.items():
        rounds = max(map(len, runs.values()), default=0)
        lines += ["", f"{name}: {tokens[name]:,} tokens of text, medians of up to {rounds} rounds"]
        lines.append(" " * 22 + "".join(f"{column:>11}" for column in columns))
        for contender, items in runs.items():
            lines.append(f"  {contender:20}" + _numbers(runs, items, tokens[name]))
    large = list(sizes)[-1]
    for count, seconds in ahead(sizes[large], tokens[large]).items():
        lines.append(f"  {int(count):,} tokens would take the pack stage {seconds / 60:,.1f} min")
    lines += ["", "goals"]
    words = {True: "met", False: "MISSED", None: "not measured"}
    for name, goal in found.items():
        value = "-" if goal.value is None else f"{goal.value:.3f}"
        sign = ">=" if goal.at_least else "<="
        note = f" ({goal.note})" if goal.note else ""
        lines.append(f"  {words[goal.met]:12} {name}: {value} {sign} {goal.limit:g}{note}")
    return "\n".join(lines)


def _numbers(runs: Runs, items: list[Run], text_tokens: int) -> str:
    seconds = _seconds(items)
    limit = _seconds(runs[LIMIT]) / seconds if runs.get(LIMIT) else float("nan")
    values = (
        f"{text_tokens / seconds / 1e6:.2f}",
        f"{limit:.3f}",
        f"{seconds:.1f}",
        f"{median(run.process_seconds for run in items):.1f}",
        f"{median(run.cpu_seconds for run in items):.1f}",
        f"{_peak(items) / MIB:,.0f}",
        f"{median(run.anonymous_bytes for run in items) / MIB:,.0f}",
    )
    return "".join(f"{value:>11}" for value in values)


def draw(sizes: Sizes, tokens: Tokens, path: Path, *, title: str) -> None:
    """Bars of tokens per second and of peak memory."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for runs in sizes.values() for name in runs))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.8 + 0.5 * len(names)), sharey=True, layout="constrained"
    )
    height, shades = 0.8 / len(sizes), ("#8fb3d4", "#1f5a94")
    for number, (size, runs) in enumerate(sizes.items()):
        rows = [place + number * height for place, name in enumerate(names) if runs.get(name)]
        present = [runs[name] for name in names if runs.get(name)]
        rates = [tokens[size] / _seconds(items) / 1e6 for items in present]
        peaks = [_peak(items) / MIB for items in present]
        for axis, values, form in ((left, rates, "%.2f"), (right, peaks, "%.0f")):
            bars = axis.barh(rows, values, height, color=shades[number % 2], label=size)
            axis.bar_label(bars, fmt=form, padding=2, fontsize=7)
    if any(runs.get(LIMIT) for runs in sizes.values()):
        size = [name for name, runs in sizes.items() if runs.get(LIMIT)][-1]
        goal = OF_LIMIT * tokens[size] / _seconds(sizes[size][LIMIT]) / 1e6
        left.axvline(goal, color="black", linewidth=0.8, linestyle=":")
    left.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names)
    left.invert_yaxis()
    left.set_xlabel("million tokens of text per second (medians; dotted: 0.9 of the limit)")
    right.set_xlabel("peak resident memory of all processes, MiB")
    for axis in (left, right):
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _seconds(runs: list[Run]) -> float:
    return median(run.seconds for run in runs)


def _peak(runs: list[Run]) -> float:
    return median(run.peak_bytes for run in runs)
