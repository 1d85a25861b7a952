"""What must hold for residuals of any shape, dtype, sharding and scale."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cpt_residual.weights.io import reader
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import Block, Streaming, blocks_of
from cpt_residual.weights.maths import arithmetic, kernels
from cpt_residual.weights.merge.merge import MergeReport, Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import ResidualArtifact, open_residual
from cpt_residual.weights.residual.source import PairDelta, StoredDelta
from support.pico_family import Tensors, fake_model, opened, read_all, same_bits
from support.raw import NAME_OF, add_scaled, raw_of, residual, round_once

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
disk = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)
alphas = st.floats(-4, 4, allow_subnormal=False) | st.sampled_from([1.0, 0.5, -1.0, 2.0, 1e-8])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor spans several blocks."""
    monkeypatch.setattr(reader, "BLOCK", 7)


def any_values(dtype: torch.dtype, seed: int, num: int = 2000) -> torch.Tensor:
    """Finite values over all exponents, subnormals and both zeros, with many near one another."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.float32:
        bits = torch.randint(-(2**31), 2**31, (num,), generator=generator).to(torch.int32)
    else:
        bits = torch.randint(-(2**15), 2**15, (num,), generator=generator).to(torch.int16)
    values = bits.view(dtype).clone()
    values[:2] = torch.tensor([0.0, -0.0])
    scale = torch.randint(-12, 6, (num,), generator=generator).float().exp2()
    ordinary = (torch.randn(num, generator=generator) * scale).to(dtype)
    mixed = torch.where(torch.rand(num, generator=generator) < 0.5, values, ordinary)
    limit = torch.finfo(torch.float16).max if dtype == torch.float16 else 1e30
    return torch.where(mixed.float().abs() < limit / 4, mixed, torch.ones_like(mixed))


def next_to(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """The two neighbours of each finite value, in float64."""
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int16).clone()
    sign = -(2 ** (8 * values.element_size() - 1))
    for step in (1, -1):
        moved = bits + step
        if step == -1:  # below zero comes the smallest number of the other sign
            moved = torch.where(bits == 0, sign + 1, torch.where(bits == sign, 1, moved))
            moved = moved.to(bits.dtype)
        yield moved.view(values.dtype).double()


def assert_rounded_once(values: torch.Tensor, exact: torch.Tensor) -> None:
    """|value - exact| <= half an ulp: no neighbour is nearer."""
    finite = torch.isfinite(values)
    error = (values.double() - exact).abs()
    for neighbour in next_to(values):
        assert not (finite & (error > (neighbour - exact).abs())).any()
    assert finite.float().mean() > 0.9


@given(dtype=dtypes, seed=seeds, alpha=alphas)
@settings(deadline=None, max_examples=60)
def test_merging_rounds_once_everywhere(dtype: torch.dtype, seed: int, alpha: float) -> None:
    target, delta = any_values(dtype, seed), any_values(torch.float32, seed + 1)
    delta = torch.where(delta.abs() < 1e4, delta, torch.ones(()))
    exact = target.double() + alpha * delta.double()
    assert_rounded_once(add_scaled(target, delta, alpha), exact if alpha else target.double())


@given(seed=seeds, dtype=dtypes)
def test_rounding_does_not_round_twice(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    near_ties = any_values(dtype, seed).double()
    ties = (near_ties + next(next_to(near_ties.to(dtype)))) / 2
    nudge = 1.0 + torch.randint(-2, 3, ties.shape, generator=generator).double() * 2.0**-50
    assert_rounded_once(round_once(ties * nudge, dtype), ties * nudge)


def test_halfway_cases_that_fp32_would_round_twice() -> None:
    target = torch.tensor([1.0], dtype=torch.bfloat16)
    delta = torch.tensor([2.0**-8 + 2.0**-26])  # just above half an ulp; fp32 loses the excess
    assert (target.float() + delta).to(torch.bfloat16).item() == 1.0
    assert add_scaled(target, delta, 1.0).item() == 1.0 + 2.0**-7


@given(base_dtype=dtypes, dtype=dtypes, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_base_plus_residual_is_instruct_at_any_scale(
    base_dtype: torch.dtype, dtype: torch.dtype, seed: int
) -> None:
    instruct = any_values(dtype, seed)
    base = torch.where(instruct.float().abs() < 1e4, any_values(base_dtype, seed + 1).float(), 0.0)
    base = base.clamp(-1e4, 1e4).to(base_dtype)
    base[5:9] = instruct[5:9].clamp(-1e4, 1e4).to(base_dtype)
    base[1] = -0.0
    difference, corrections, proof = residual(base, instruct)
    rebuilt = add_scaled(base, difference, 1.0, corrections, dtype=dtype)
    assert torch.equal(rebuilt, instruct)
    assert proof.num_wrong == 0
    assert proof.num_rounded == corrections.count
    far = torch.zeros_like(difference)
    far[torch.from_numpy(corrections.index)] = torch.from_numpy(corrections.value)
    exact = instruct.double() - base.double()  # float64 holds it unless 2^29 apart
    assert ((difference.double() + far.double() - exact).abs() <= 2.0**-52 * exact.abs()).all()
    other_bits = int((torch.signbit(rebuilt) != torch.signbit(instruct)).sum())
    assert proof.num_zero_signs == other_bits
    assert proof.bit_exact == (other_bits == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [1e-4, 1e-3, 1e-2])
def test_fp32_alone_is_exact_at_realistic_scales(dtype: torch.dtype, step: float) -> None:
    generator = torch.Generator().manual_seed(int(1 / step))
    base = (0.02 * torch.randn(20_000, generator=generator)).to(dtype)
    instruct = (base.float() + step * torch.randn(20_000, generator=generator)).to(dtype)
    difference, corrections, proof = residual(base, instruct)
    assert corrections.count == 0
    assert proof == arithmetic.Proof(0, 0, 0, 0)
    assert same_bits((base.float() + difference).to(dtype), instruct)


def test_fp32_models_need_corrections_and_get_them() -> None:
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(20_000, generator=generator)
    instruct = 0.9 * base + 0.01 * torch.randn(20_000, generator=generator)  # weight decay
    difference, corrections, proof = residual(base, instruct)
    assert not same_bits(base + difference, instruct)
    assert 0 < proof.num_rounded < 6000
    assert proof.max_ulps > 0
    assert proof.bit_exact
    assert same_bits(add_scaled(base, difference, 1.0, corrections), instruct)


def test_an_unchanged_element_keeps_its_bits_and_a_lost_sign_is_reported() -> None:
    zeros = torch.tensor([-0.0, 0.0, -0.0])
    difference, corrections, proof = residual(zeros, zeros)
    assert proof.bit_exact
    assert same_bits(add_scaled(zeros, difference, 1.0, corrections), zeros)
    _, _, proof = residual(torch.ones(3), torch.tensor([-0.0, 0.0, 2.0]))
    assert (proof.num_zero_signs, proof.num_wrong, proof.bit_exact) == (1, 0, False)


@given(num=st.integers(0, 30_000), seed=seeds)
@settings(max_examples=10, deadline=None)
def test_sums_are_those_of_float64(num: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, num, generator=generator).double()
    found = kernels.dot(left.numpy(), right.numpy())
    assert found == pytest.approx(float(left @ right), abs=1e-9)


# --- the kernels give the bits of the definition -------------------------------------------------
kernel_dtypes = st.sampled_from([torch.bfloat16, torch.float32])
lengths = st.integers(0, 70)


@given(base_dtype=kernel_dtypes, dtype=kernel_dtypes, seed=seeds, num=lengths)
@settings(deadline=None, max_examples=60)
def test_the_subtracting_kernel(
    base_dtype: torch.dtype, dtype: torch.dtype, seed: int, num: int
) -> None:
    base, instruct = any_values(base_dtype, seed)[:num], any_values(dtype, seed + 1)[:num]
    out = np.empty(num, dtype=np.float32)
    sums = kernels.subtract(raw_of(base), raw_of(instruct), out)
    expected, corrections, proof = residual(base, instruct)
    assert np.array_equal(out.view(np.uint32), expected.numpy().view(np.uint32))
    if not sums.num_suspect:
        assert (corrections.count, proof) == (0, arithmetic.Proof())
    wide = base.double(), instruct.double()
    assert sums.base_squared == pytest.approx(float(wide[0] @ wide[0]))
    assert sums.instruct_squared == pytest.approx(float(wide[1] @ wide[1]))
    difference = wide[1] - wide[0]
    assert sums.residual_squared == pytest.approx(float(difference @ difference))
    assert sums.base_dot_residual == pytest.approx(
        float(wide[0] @ difference), rel=1e-9, abs=1e-12 * float(wide[0].abs() @ difference.abs())
    )


@given(dtype=kernel_dtypes, seed=seeds, num=lengths, alpha=alphas)
@settings(deadline=None, max_examples=60)
def test_the_adding_kernel(dtype: torch.dtype, seed: int, num: int, alpha: float) -> None:
    target, delta = any_values(dtype, seed)[:num], any_values(torch.float32, seed + 1)[:num]
    delta = torch.where(delta.abs() < 1e4, delta, torch.ones(()))
    raw, out = raw_of(target), np.empty_like(raw_of(target))
    sums = kernels.add(raw, delta.numpy(), alpha, out)
    if alpha:
        expected = arithmetic.add_scaled(raw, delta.numpy(), alpha, dtype=NAME_OF[dtype])
        assert np.array_equal(out, expected)
    assert sums.num_moved == int(torch.count_nonzero(alpha * delta.double()))
    assert sums.move_squared == pytest.approx(alpha**2 * float(delta.double() @ delta.double()))
    assert sums.num_not_finite == 0


@given(dtype=kernel_dtypes, other=kernel_dtypes, seed=seeds, num=lengths, alpha=alphas)
@settings(deadline=None, max_examples=60)
def test_adding_a_difference_is_adding_the_residual(
    dtype: torch.dtype, other: torch.dtype, seed: int, num: int, alpha: float
) -> None:
    target, base = any_values(dtype, seed)[:num], any_values(other, seed + 1)[:num]
    instruct = any_values(other, seed + 2)[:num]
    difference, corrections, _ = residual(base, instruct)
    raw, out = raw_of(target), np.empty_like(raw_of(target))
    _, num_inexact = kernels.add_difference(raw, raw_of(base), raw_of(instruct), alpha, out)
    if alpha and not num_inexact:
        expected = add_scaled(target, difference, alpha, corrections)
        assert np.array_equal(out, raw_of(expected))


def test_kernels_count_what_is_not_finite() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        values = torch.ones(40, dtype=dtype)
        values[3], values[38] = torch.nan, torch.inf
        raw, out = raw_of(values), np.empty_like(raw_of(values))
        wide = values.double().numpy()
        assert kernels.place(raw, wide, wide, out).num_not_finite == 2
        huge = torch.full((40,), 3e38).to(dtype)
        sums = kernels.add(raw_of(huge), np.full(40, 3e38, np.float32), 1.0, out)
        assert sums.num_not_finite == 40


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), step=st.integers(1, 50))
def test_blocks_cover_every_element_once(sizes: list[int], step: int) -> None:
    folder_free = [
        reader.TensorEntry(name=str(i), dtype="F32", shape=(size,), shard="s", offset=0)
        for i, size in enumerate(sizes)
    ]
    blocks = list(blocks_of(folder_free, step))
    for number, size in enumerate(sizes):
        own = [block for block in blocks if block.name == str(number)]
        assert (own[0].start, own[-1].stop) == (0, size)
        assert all(left.stop == right.start for left, right in pairwise(own))
        assert all(block.num_elements <= step for block in own)


def test_every_nan_stays_nan() -> None:
    """Bits of NaN could carry into the sign while they are rounded to bf16."""
    for bits in (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF80FFFF, 0x7FC00000):
        delta = np.full(33, bits, dtype=np.uint32).view(np.float32)
        target = np.full(33, 0x3F80, dtype=np.uint16)
        out = np.empty_like(target)
        with np.errstate(invalid="ignore"):
            assert kernels.add(target, delta, 1.0, out).num_not_finite == 33
            exact = delta.astype(np.float64)
        assert np.isnan(arithmetic.to_float32(out)).all()
        assert np.array_equal(out, arithmetic.round_once(exact, "BF16"))


@given(seed=seeds, num=lengths, alpha=alphas)
@settings(deadline=None, max_examples=60)
def test_realistic_pairs_take_the_short_way_and_are_right(
    seed: int, num: int, alpha: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = (0.02 * torch.randn(num, generator=generator)).to(torch.bfloat16)
    step = 1e-3 * torch.randn(num, generator=generator)
    instruct = (base.float() + step).to(torch.bfloat16)
    target = (base.float() + 0.5 * step.flip(0)).to(torch.bfloat16)
    out = np.empty(num, dtype=np.uint16)
    stored = np.empty(num, dtype=np.float32)
    assert kernels.subtract(raw_of(base), raw_of(instruct), stored).num_suspect == 0
    expected, corrections, proof = residual(base, instruct)
    assert np.array_equal(stored, expected.numpy())
    assert (corrections.count, proof) == (0, arithmetic.Proof())
    pair = raw_of(target), raw_of(base), raw_of(instruct)
    direct, num_inexact = kernels.add_difference(*pair, alpha, out)
    assert num_inexact == 0
    exact = target.double() + alpha * (instruct.double() - base.double())
    assert np.array_equal(out, raw_of(round_once(exact, torch.bfloat16)))
    again = kernels.add(raw_of(target), stored, alpha, out)
    assert direct == again


# --- whole directories ---------------------------------------------------------------------------
NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)
shapes = st.lists(
    st.sampled_from([(), (0,), (1,), (5,), (3, 4), (10, 2), (2, 3, 5)]), min_size=5, max_size=5
)
sharding = st.integers(1, 4)


@dataclass(frozen=True)
class Case:
    base: Tensors
    instruct: Tensors
    target: Tensors
    dtype: torch.dtype


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtype, sizes, seed = draw(dtypes), draw(shapes), draw(seeds)
    generator = torch.Generator().manual_seed(seed)
    base = {
        name: (0.02 * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in zip(NAMES, sizes, strict=True)
    }

    def moved(start: Tensors, scale: float) -> Tensors:
        return {
            name: (value.float() + scale * torch.randn(value.shape, generator=generator)).to(dtype)
            for name, value in start.items()
        }

    instruct, target = moved(base, 1e-3), moved(base, 1e-3)
    # A residual of zeros is refused when it is applied; see test_merge.
    assume(any(not torch.equal(base[name], instruct[name]) for name in NAMES))
    return Case(base=base, instruct=instruct, target=target, dtype=dtype)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def residual_of(root: Path, case: Case, *, num_shards: int = 1) -> ResidualArtifact:
    base = fake_model(root / "base", case.base, num_shards=1)
    instruct = fake_model(root / "instruct", case.instruct, num_shards=num_shards)
    compute(
        opened(base, "base"),
        opened(instruct, "instruct"),
        root / "residual",
        streaming=Streaming(threads=3),
    )
    return open_residual(root / "residual")


def apply(
    target: Checkpoint, artifact: ResidualArtifact, out: Path, *, alpha: float
) -> MergeReport:
    (report,) = merge(target, StoredDelta(artifact), [Output(alpha, out)])
    return report


def merged(root: Path, target: Tensors, residual: ResidualArtifact, alpha: float) -> Tensors:
    path = fake_model(root / f"target{alpha}", target, num_shards=2)
    apply(opened(path), residual, root / f"out{alpha}", alpha=alpha)
    return read_all(root / f"out{alpha}")


@given(case=cases(), num_shards=sharding)
@disk
def test_base_plus_residual_reconstructs_instruct_on_disk(case: Case, num_shards: int) -> None:
    with folder() as root:
        artifact = residual_of(root, case, num_shards=num_shards)
        rebuilt = merged(root, case.base, artifact, 1.0)
        assert artifact.manifest.bit_exact
        assert rebuilt.keys() == case.instruct.keys()
        for name, value in case.instruct.items():
            assert same_bits(rebuilt[name], value), name
            assert rebuilt[name].shape == value.shape


@given(case=cases(), num_shards=sharding)
@disk
def test_alpha_zero_is_the_target_byte_for_byte(case: Case, num_shards: int) -> None:
    with folder() as root:
        artifact = residual_of(root, case)
        path = fake_model(root / "target", case.target, num_shards=num_shards)
        apply(opened(path), artifact, root / "out", alpha=0.0)
        files = sorted(path.glob("*.safetensors*"))
        assert len(files) == (1 if num_shards == 1 else num_shards + 1)
        for file in files:
            assert (root / "out" / file.name).read_bytes() == file.read_bytes()


@given(case=cases(), first=sharding, second=sharding)
@disk
def test_shard_layout_does_not_matter(case: Case, first: int, second: int) -> None:
    with folder() as root:
        results: list[Tensors] = []
        for number in (first, second):
            place = root / f"{len(results)}"
            artifact = residual_of(place, case, num_shards=number)
            path = fake_model(place / "target", case.target, num_shards=number)
            apply(opened(path), artifact, place / "out", alpha=0.7)
            results.append(read_all(place / "out"))
        for name in NAMES:
            assert same_bits(results[0][name], results[1][name])


@given(case=cases(), alpha=alphas)
@disk
def test_the_merge_is_linear_in_alpha_up_to_one_rounding(case: Case, alpha: float) -> None:
    with folder() as root:
        artifact = residual_of(root, case)
        found = merged(root, case.target, artifact, alpha)
        for name in NAMES:
            target = case.target[name].double().reshape(-1)
            moved = (case.instruct[name].double() - case.base[name].double()).reshape(-1)
            exact, out = target + alpha * moved, found[name].reshape(-1)
            ulp = next(next_to(out)).sub(out.double()).abs()
            own_error = 2.0**-51 * (target.abs() + abs(alpha) * moved.abs())  # of the reference
            assert ((out.double() - exact).abs() <= 0.5 * ulp + own_error).all()


@given(case=cases())
@disk
def test_the_merge_is_instruct_plus_what_cpt_learnt(case: Case) -> None:
    with folder() as root:
        found = merged(root, case.target, residual_of(root, case), 1.0)
        for name in NAMES:
            other = case.instruct[name].double() + (
                case.target[name].double() - case.base[name].double()
            )
            assert torch.equal(found[name], round_once(other, case.dtype))


@given(case=cases(), alpha=alphas, num_shards=sharding)
@disk
def test_a_pair_and_its_stored_residual_give_the_same_bytes(
    case: Case, alpha: float, num_shards: int
) -> None:
    with folder() as root:
        artifact = residual_of(root, case, num_shards=num_shards)
        target = opened(fake_model(root / "target", case.target, num_shards=num_shards))
        pair = PairDelta(opened(root / "base", "base"), opened(root / "instruct", "instruct"))
        stored = merge(target, StoredDelta(artifact), [Output(alpha, root / "stored")])
        direct = merge(target, pair, [Output(alpha, root / "direct")])
        for file in (root / "stored").iterdir():
            assert (root / "direct" / file.name).read_bytes() == file.read_bytes(), file.name
        assert stored[0].residual_norm == pytest.approx(direct[0].residual_norm)
        assert stored[0].lost_share == direct[0].lost_share
        assert stored[0].cosine == pytest.approx(direct[0].cosine, abs=1e-12)


@given(case=cases(), chosen=st.lists(alphas, min_size=2, max_size=4, unique=True))
@disk
def test_several_alphas_in_one_pass_are_the_single_ones(case: Case, chosen: list[float]) -> None:
    with folder() as root:
        artifact = residual_of(root, case)
        target = opened(fake_model(root / "target", case.target, num_shards=3))
        together = [Output(alpha, root / f"many{n}") for n, alpha in enumerate(chosen)]
        reports = merge(target, StoredDelta(artifact), together)
        for output, report in zip(together, reports, strict=True):
            one = Output(output.alpha, root / f"one{output.folder.name}")
            (alone,) = merge(target, StoredDelta(artifact), [one])
            assert alone.model_copy(update={"folder": output.folder}) == report
            for file in one.folder.iterdir():
                assert (output.folder / file.name).read_bytes() == file.read_bytes()


def test_a_block_of_corrections_counts_from_its_own_start() -> None:
    generator = torch.Generator().manual_seed(3)
    base = {name: torch.randn(40, generator=generator) for name in NAMES}
    instruct = {name: torch.randn(40, generator=generator) for name in NAMES}
    with folder() as root:
        artifact = residual_of(root, Case(base, instruct, base, torch.float32))
        assert artifact.manifest.num_rounded > 5
        for name in NAMES:
            whole = artifact.corrections(Block(name, 0, 40))
            part = artifact.corrections(Block(name, 10, 30))
            inside = (whole.index >= 10) & (whole.index < 30)
            assert np.array_equal(part.index + 10, whole.index[inside])
            assert np.array_equal(part.value, whole.value[inside])
