"""The scheduler and the machines it is asked for; nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_residual.config.schema import Launch
from cpt_residual.core.stage import Resources
from cpt_residual.errors import LaunchError
from cpt_residual.launch import environment, machine
from cpt_residual.launch.machine import local_machine, planned_machine
from cpt_residual.launch.schedule import Job, Machine, Span, simulate, wall_seconds


def job(name: str, seconds: float, *needs: str, gpus: int = 0, cores: int = 1) -> Job:
    return Job(name, None, frozenset(needs), Resources(1, gpus, cores), seconds)


def spans(machine: Machine, *jobs: Job) -> Mapping[str, Span]:
    return simulate({each.name: each for each in jobs}, machine)


EIGHT = Machine(64, tuple(map(str, range(8))))


def test_eight_variants_are_evaluated_at_once_on_eight_gpus() -> None:
    variants = [job(f"evaluate{n}", 60, "train", gpus=1) for n in range(8)]
    found = spans(EIGHT, job("train", 100, gpus=8, cores=64), *variants)
    assert {found[each.name].grant.gpus for each in variants} == {(gpu,) for gpu in EIGHT.gpus}
    assert wall_seconds(found.values()) == 160


def test_jobs_without_gpus_overtake_one_that_waits_for_gpus_but_none_that_needs_them() -> None:
    found = spans(
        Machine(4, ("0", "1")),
        job("first", 10, gpus=1),
        job("wide", 9, gpus=2),
        job("narrow", 1, gpus=1),
        job("cpu", 1),
    )
    assert [found[name].start for name in ("first", "cpu", "wide", "narrow")] == [0, 0, 10, 19]


jobs_of_graphs = st.lists(
    st.tuples(
        st.floats(0.1, 50), st.integers(1, 5), st.integers(0, 5), st.sets(st.integers(0, 12))
    ),
    min_size=1,
    max_size=12,
)


@given(jobs_of_graphs, st.integers(1, 4), st.integers(0, 4))
def test_no_slot_is_held_twice_and_everything_runs(
    drawn: list[tuple[float, int, int, set[int]]], cores: int, gpus: int
) -> None:
    jobs = [
        job(str(n), seconds, *(str(m) for m in needs if m < n), gpus=wanted, cores=wide)
        for n, (seconds, wide, wanted, needs) in enumerate(drawn)
    ]
    found = spans(Machine(cores, tuple("abcd"[:gpus])), *jobs)
    assert found.keys() == {each.name for each in jobs}
    for each in jobs:
        assert all(found[need].end <= found[each.name].start for need in each.needs)
        assert len(found[each.name].grant.gpus) == min(each.resources.gpus_per_node, gpus)
    for moment in {span.start for span in found.values()}:
        grants = [span.grant for span in found.values() if span.start <= moment < span.end]
        assert sum(grant.cores for grant in grants) <= cores
        held = [gpu for grant in grants for gpu in grant.gpus]
        assert len(held) == len(set(held))
    assert wall_seconds(found.values()) <= sum(each.seconds for each in jobs) + 1e-6


# --- which machine -------------------------------------------------------------------------------
CUDA = Launch(device="cuda", num_processes=2, cores=4)
WANTED = {"cpt:x": Resources(gpus_per_node=2), "report": Resources()}


@pytest.mark.parametrize(
    ("named", "found", "slots"),
    [
        (None, 3, ("0", "1", "2")),
        ("5, 7", 2, ("5", "7")),
        ("2,0,-1,1", 2, ("2", "0")),
        ("1,9,0", 3, ("1", "9", "0")),
        ("GPU-1c,GPU-5a", 2, ("GPU-1c", "GPU-5a")),
        ("MIG-1,MIG-2,MIG-3", 1, ("MIG-1", "MIG-2", "MIG-3")),
        ("0,1", None, ("0", "1")),
        (None, None, ("0", "1")),  # torch does not answer: the training will say
    ],
)
def test_slots_are_the_entries_of_cuda_visible_devices(
    monkeypatch: pytest.MonkeyPatch, named: str | None, found: int | None, slots: tuple[str, ...]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(environment, "visible_gpus", lambda: found)
    assert local_machine(CUDA, WANTED) == Machine(4, slots)
    if named and found:
        assert set(planned_machine(CUDA).gpus) <= {*slots, "0", "1"}


def test_what_asks_for_more_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment, "visible_gpus", lambda: 1)
    for launch in (CUDA, Launch(num_processes=2)):
        with pytest.raises(LaunchError, match="fewer GPUs than processes") as few:
            local_machine(launch, WANTED)
        assert "GPUs visible: 1" in few.value.problems
        assert "launch.num_processes=1" in few.value.remedy
    monkeypatch.setattr(environment, "visible_gpus", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(LaunchError, match="no GPU is visible") as none:
        local_machine(CUDA, WANTED)
    assert none.value.problems == ("launch.device=cuda", "CUDA_VISIBLE_DEVICES=-1")
    assert none.value.exit_code == 2
    with pytest.raises(LaunchError, match="cpt:x needs 3 nodes, and this is one"):
        local_machine(Launch(num_nodes=3), {"cpt:x": Resources(nodes=3)})


def test_without_gpus_nobody_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "visible_gpus", lambda: pytest.fail("torch was asked"))
    assert local_machine(CUDA, {"report": Resources()}) == Machine(4)


def test_auto_falls_back_to_the_cpu_where_torch_sees_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "visible_gpus", lambda: 0)
    assert local_machine(Launch(cores=2), WANTED) == Machine(2)


def test_a_plan_counts_with_what_a_training_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    eight = Launch(device="cuda", num_processes=8, threads=8)
    assert planned_machine(eight) == EIGHT
    assert planned_machine(Launch(device="cpu", num_processes=8)) == Machine(2)
    two = planned_machine(eight.model_copy(update={"num_nodes": 2}))
    assert str(two) == "16 GPUs and 128 cores"
