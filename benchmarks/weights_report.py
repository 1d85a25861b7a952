"""What the numbers of `weights.py` say: medians, ratios, goals, table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from weights_contenders import OURS
from weights_measure import Run

GIB = 1 << 30
COPY_FACTOR, PEER_FACTOR, ALPHAS_FACTOR, PEAK_GIB, SAME_FACTOR = 1.25, 4.0, 1.6, 0.5, 1.1
PEER_MERGES = (("mergekit", "direct"), ("residuals", "direct"), ("residuals_apply", "apply"))
"""Each peer, and what ours does with the same inputs."""
RATIOS = (
    ("direct", "copy"),
    ("apply", "copy"),
    ("four_alphas", "direct"),
    ("four_alphas", "copy_four"),
    ("copy_four", "copy"),
    *PEER_MERGES,
    ("residuals_apply", "direct"),
    *((peer, "copy") for peer, _ in PEER_MERGES),
)
Runs = Mapping[str, Sequence[Run]]
"""Runs of each contender, one per round."""


@dataclass(frozen=True)
class Goal:
    """One goal: `value` must not be above (`at_least`: below) `limit`. None: was not measured."""

    value: float | None
    limit: float
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def summary(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def summarise(runs: Runs) -> dict[str, Any]:
    """Every raw number and its median, by contender."""
    result: dict[str, Any] = {}
    for name, items in runs.items():
        columns = {field.name: [getattr(run, field.name) for run in items] for field in fields(Run)}
        medians = {f"median_{column}": median(values) for column, values in columns.items()}
        flushed = [run.seconds + run.flush_seconds for run in items]
        result[name] = {**columns, **medians, "median_seconds_with_flush": median(flushed)}
    return result


def ratios(runs: Runs) -> dict[str, Any]:
    """Seconds of one contender over those of another, per round and of the medians."""
    found: dict[str, Any] = {}
    for upper, lower in RATIOS:
        if runs.get(upper) and runs.get(lower):
            pairs = zip(runs[upper], runs[lower], strict=True)
            per_round = [a.seconds / b.seconds for a, b in pairs]
            found[f"{upper}/{lower}"] = {
                "per_round": per_round,
                "median_of_rounds": median(per_round),
                "of_medians": _seconds(runs[upper]) / _seconds(runs[lower]),
            }
    return found


def goals(states: Mapping[str, Runs], twice: Mapping[str, Run]) -> dict[str, Goal]:
    """The goals of the project, computed from medians over the rounds of each state."""
    found: dict[str, Goal] = {}
    for state, runs in states.items():
        known = {name: item["of_medians"] for name, item in ratios(runs).items()}
        found[f"{state}: direct apply over the copy limit"] = Goal(
            known.get("direct/copy"), COPY_FACTOR
        )
        for peer, ours in PEER_MERGES:
            found[f"{state}: {peer} over {ours}"] = Goal(
                known.get(f"{peer}/{ours}"),
                PEER_FACTOR,
                at_least=True,
                note=_most_note(known.get(f"{peer}/copy")),
            )
        found[f"{state}: four alphas over one"] = Goal(
            known.get("four_alphas/direct"), ALPHAS_FACTOR, note=_disk_note(known)
        )
    return found | _memory_goals(states, twice)


def _most_note(copies: float | None) -> str:
    """How much faster than a peer any program could be here."""
    return "" if copies is None else f"it takes {copies:.2f} times as long as copying"


def _disk_note(known: Mapping[str, float]) -> str:
    disk = known.get("copy_four/copy")
    if disk is None:
        return ""
    allowed = "allows it" if disk <= ALPHAS_FACTOR else "does not allow it"
    return f"copying to four takes {disk:.2f} times as long as to one: the disk {allowed}"


def _memory_goals(states: Mapping[str, Runs], twice: Mapping[str, Run]) -> dict[str, Goal]:
    once: dict[str, int] = {}
    for runs in states.values():
        for name in OURS:
            peaks = [run.peak_bytes for run in runs.get(name, ())]
            once[name] = max([once.get(name, 0), *peaks])
    peaks = [peak for peak in once.values() if peak]
    grown = [run.peak_bytes / once[name] for name, run in twice.items() if once.get(name)]
    doubled = [run.peak_bytes for run in twice.values()]
    return {
        "peak memory of ours, GiB": Goal(max(peaks) / GIB if peaks else None, PEAK_GIB),
        "peak memory of ours at twice the size, GiB": Goal(
            max(doubled) / GIB if doubled else None, PEAK_GIB
        ),
        "peak memory of ours, twice the size over once": Goal(
            max(grown) if grown else None, SAME_FACTOR, note="the largest of its commands"
        ),
    }


def table(states: Mapping[str, Runs], found: Mapping[str, Goal]) -> str:
    """Medians by contender, then the goals."""
    columns = ("seconds", "to disk", "CPU s", "peak GiB", "anon GiB")
    head = " " * 24 + "".join(f"{column:>10}" for column in columns)
    lines: list[str] = []
    for state, runs in states.items():
        lines += ["", f"{state} cache, medians", head]
        for name, item in summarise(runs).items():
            numbers = (
                item["median_seconds"],
                item["median_seconds_with_flush"],
                item["median_cpu_seconds"],
                item["median_peak_bytes"] / GIB,
                item["median_anonymous_bytes"] / GIB,
            )
            lines.append(f"  {name:22}" + "".join(f"{number:10.2f}" for number in numbers))
    lines += ["", "goals"]
    words = {True: "met", False: "MISSED", None: "not measured"}
    for name, goal in found.items():
        value = "-" if goal.value is None else f"{goal.value:.2f}"
        sign = ">=" if goal.at_least else "<="
        note = f" ({goal.note})" if goal.note else ""
        lines.append(f"  {words[goal.met]:12} {name}: {value} {sign} {goal.limit:g}{note}")
    return "\n".join(lines)


def draw(states: Mapping[str, Runs], path: Path, *, title: str) -> None:
    """Bars of the median seconds and of the peak memory."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for runs in states.values() for name in runs))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.6 + 0.42 * len(names)), sharey=True, layout="constrained"
    )
    height, shades = 0.8 / max(1, len(states)), ("#1f5a94", "#e08e3c")
    for number, (state, runs) in enumerate(states.items()):
        for axis, measure in ((left, _seconds), (right, _peak_gib)):
            rows = [index + number * height for index, name in enumerate(names) if runs.get(name)]
            values = [measure(runs[name]) for name in names if runs.get(name)]
            bars = axis.barh(rows, values, height, color=shades[number % 2], label=f"{state} cache")
            axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    left.set_yticks([index + 0.4 - height / 2 for index in range(len(names))], names)
    left.invert_yaxis()
    left.set_xlabel("seconds of the whole process (median)")
    right.set_xlabel("peak resident memory, GiB (median)")
    right.axvline(PEAK_GIB, color="black", linewidth=0.8, linestyle=":")
    for axis in (left, right):
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _seconds(runs: Sequence[Run]) -> float:
    return median(run.seconds for run in runs)


def _peak_gib(runs: Sequence[Run]) -> float:
    return median(run.peak_bytes for run in runs) / GIB
