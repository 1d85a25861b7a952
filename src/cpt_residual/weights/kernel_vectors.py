"""The two kernels of plain addition once more, for bf16 models: in fp32, a vector at a time.

fp32 holds most sums of bf16 elements exactly, and float64 takes twice the instructions. So a chunk
is merged in fp32, with a proof that no addition or subtraction has rounded: of s = a + b, s - a is
b and s - b is a. (Fast2Sum, Dekker 1971, proves it with the larger of a and b alone; to ask for
both spares the search for it.) What is then rounded to bf16 is the float64 value of the formula,
and every bit and sum is that of `kernel_bodies`. A chunk without the proof goes to the loop there:
elements some 2^16 apart, NaN, Inf, results that bf16 cannot hold, -0.0 in the target. So does every
chunk if the factor is no power of two between 2^-16 and 2^16: its products round.

Written for LLVM directly: whether it turns a loop that numba gives it into vectors hangs on the
type of every subexpression, here the vectors are written down.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from llvmlite import ir as untyped_ir

from cpt_residual.weights.native import LANES, SYMBOL

LOOP = "cpt_residual_loop"
"""The loop of `kernel_bodies` over all elements, with the arguments of a kernel."""
CHUNK = 512
"""Elements that are proven together."""

_ir = cast("Any", untyped_ir)
_BIT, _I16, _I32, _I64 = (_ir.IntType(size) for size in (1, 16, 32, 64))
_BITS = _ir.IntType(LANES)
_F32, _F64 = _ir.FloatType(), _ir.DoubleType()
_POINTER = _ir.PointerType()
_KINDS = {"H": _I16, "f": _F32}  # by numpy's character of a dtype
_SIZES = {_I16: 2, _F32: 4, _F64: 8, _I64: 8}  # bytes
_MINUS_ZERO = -(1 << 15)  # as bits of bf16
_LEAST_NORMAL, _INFINITE = 1 << 23, 0xFF << 23  # as bits of fp32
_MOST_DOUBLINGS = 16
"""A factor of 2^-16 or more never takes a difference of bf16 elements, a multiple of 2^-133, below
the 2^-149 of which every fp32 number is a multiple. (For residuals see `_move_of_residual`.)"""
_EXPONENT_OF_ONE = 1023  # of float64

Vector = Any
Builder = Any
Load = Callable[[int], Vector]
"""The elements of the array of that number, bf16 as fp32."""
Move = Callable[[Builder, Load, Vector], tuple[Vector, list[Vector]]]
"""What is added to the target, and bits of which one is set where that may have rounded."""


def kernel_module(name: str, dtypes: str) -> str | None:
    """LLVM's text of a kernel (SYMBOL) that calls LOOP where it has to; None where there is only
    the loop."""
    move = _MOVES.get((name, dtypes))
    if move is None:
        return None
    module = _ir.Module(name)
    signature = _ir.FunctionType(
        _ir.VoidType(), [_POINTER] * len(dtypes) + [_F64, _I64, _POINTER, _POINTER]
    )
    loop = _ir.Function(module, signature, LOOP)
    kernel = _ir.Function(module, signature, SYMBOL)
    *addresses, factor, size, sums, counts = kernel.args
    arrays = [_Array(a, _KINDS[dtype]) for a, dtype in zip(addresses, dtypes, strict=True)]
    builder = _ir.IRBuilder(kernel.append_basic_block())

    def by_loop(start: Any, count: Any) -> None:
        parts = [array.at(builder, start) for array in arrays]
        builder.call(loop, [*parts, factor, count, sums, counts])

    results = _Array(sums, _F64), _Array(counts, _I64)
    chunks = builder.and_(size, _I64(-CHUNK))
    whole = builder.select(_is_power_of_two(builder, factor), chunks, _I64(0))
    with _counting(builder, _I64(0), whole, CHUNK) as start:
        scale = _splat(builder, builder.fptrunc(factor, _F32))
        proven = _merge_chunk(builder, arrays, results, start, move, scale)
        with builder.if_then(builder.not_(proven)):
            by_loop(start, _I64(CHUNK))
    by_loop(whole, builder.sub(size, whole))
    builder.ret_void()
    return str(module)


def _merge_chunk(
    b: Builder,
    arrays: Sequence[_Array],
    results: tuple[_Array, _Array],
    start: Any,
    move: Move,
    scale: Vector,
) -> Any:
    """Writes CHUNK merged elements. Whether they are proven; their sums and counts (see
    kernel_bodies._merge) are added only then."""
    out, (sums, counts) = arrays[_OUT[move]], results
    totals = [_Variable(b, sums.load(b, _I64(row * LANES))) for row in range(3)]
    moved, lost = _Variable(b, _I64(0)), _Variable(b, _I64(0))
    doubtful = _Variable(b, _all(_BIT, 0))
    with _counting(b, start, b.add(start, _I64(CHUNK)), LANES) as at:
        raw = arrays[0].load(b, at)
        target = _widened(b, raw)
        step, doubts = move(b, lambda number: _widened(b, arrays[number].load(b, at)), scale)
        exact = b.fadd(target, step)
        doubts += _rounded(b, exact, target, step)
        doubts.append(b.icmp_signed("==", raw, _all(_I16, _MINUS_ZERO)))
        nearest, too_large = _to_bf16(b, exact)
        doubts.append(too_large)
        out.store(b, nearest, at)
        moves = b.fcmp_unordered("!=", step, _all(_F32, 0.0))
        moved.add(_count(b, moves))
        lost.add(_count(b, b.and_(moves, b.fcmp_ordered("==", _widened(b, nearest), target))))
        wide = b.fpext(target, _of(_F64)), b.fpext(step, _of(_F64))
        for total, left, right in zip(totals, (0, 1, 0), (0, 1, 1), strict=True):
            total.set(b.fadd(total.get(), b.fmul(wide[left], wide[right])))
        for doubt in doubts:
            doubtful.set(b.or_(doubtful.get(), doubt))
    proven = b.icmp_unsigned("==", b.bitcast(doubtful.get(), _BITS), _BITS(0))
    with b.if_then(proven):
        for row, total in enumerate(totals):
            sums.store(b, total.get(), _I64(row * LANES))
        for row, count in enumerate((moved, lost)):
            place = counts.at(b, _I64(row * LANES))
            b.store(b.add(b.load(place, typ=_I64), count.get()), place)
    return proven


def _move_of_residual(b: Builder, load: Load, scale: Vector) -> tuple[Vector, list[Vector]]:
    """factor * delta. A product of at most fp32's least normal number may have rounded, to that
    number too."""
    delta = load(1)
    step = b.fmul(scale, delta)
    small = b.icmp_unsigned("<=", _magnitude(b, step), _all(_I32, _LEAST_NORMAL))
    return step, [b.and_(small, b.fcmp_unordered("!=", delta, _all(_F32, 0.0)))]


def _move_of_pair(b: Builder, load: Load, scale: Vector) -> tuple[Vector, list[Vector]]:
    """factor * (instruct - base)."""
    base, instruct = load(1), load(2)
    difference = b.fsub(instruct, base)
    return b.fmul(scale, difference), _rounded(b, difference, instruct, b.fneg(base))


_MOVES: Mapping[tuple[str, str], Move] = {
    ("add", "HfHH"): _move_of_residual,
    ("add_difference", "HHHH"): _move_of_pair,
}
_OUT: Mapping[Move, int] = {_move_of_residual: 2, _move_of_pair: 3}
"""Which array is written."""


# --- vectors of LANES elements -------------------------------------------------------------------
@dataclass(frozen=True)
class _Array:
    """Elements of one kind in memory, aligned to their size."""

    address: Any
    kind: Any

    def at(self, b: Builder, index: Any) -> Any:
        """Where the element of that number is."""
        return b.gep(self.address, [index], source_etype=self.kind)

    def load(self, b: Builder, index: Any) -> Vector:
        """LANES elements from `index` on."""
        return b.load(self.at(b, index), typ=_of(self.kind), align=_SIZES[self.kind])

    def store(self, b: Builder, values: Vector, index: Any) -> None:
        b.store(values, self.at(b, index), align=_SIZES[self.kind])


class _Variable:
    """A value that a loop changes."""

    def __init__(self, builder: Builder, value: Any) -> None:
        self._builder = builder
        with builder.goto_entry_block():
            self._place = builder.alloca(value.type)
        self._kind = value.type
        self.set(value)

    def get(self) -> Any:
        return self._builder.load(self._place, typ=self._kind)

    def set(self, value: Any) -> None:
        self._builder.store(value, self._place)

    def add(self, value: Any) -> None:
        self.set(self._builder.add(self.get(), value))


@contextmanager
def _counting(b: Builder, start: Any, stop: Any, step: int) -> Generator[Any]:
    """A loop from start to stop (exclusive): what the block builds is its body, for the number that
    it is given."""
    number = _Variable(b, start)
    head, body, end = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    b.cbranch(b.icmp_signed("<", number.get(), stop), body, end)
    b.position_at_end(body)
    yield number.get()
    number.add(_I64(step))
    b.branch(head)
    b.position_at_end(end)


def _is_power_of_two(b: Builder, factor: Any) -> Any:
    """Whether a float64 is 2^k or -2^k with k of at most _MOST_DOUBLINGS."""
    bits = b.bitcast(factor, _I64)
    fraction = b.and_(bits, _I64((1 << 52) - 1))
    exponent = b.and_(b.lshr(bits, _I64(52)), _I64(0x7FF))
    from_least = b.sub(exponent, _I64(_EXPONENT_OF_ONE - _MOST_DOUBLINGS))
    near = b.icmp_unsigned("<=", from_least, _I64(2 * _MOST_DOUBLINGS))
    return b.and_(b.icmp_unsigned("==", fraction, _I64(0)), near)


def _rounded(b: Builder, total: Vector, left: Vector, right: Vector) -> list[Vector]:
    """Bits of which one is set where total = left + right was rounded, or is no number."""
    return [
        b.fcmp_unordered("!=", b.fsub(total, left), right),
        b.fcmp_unordered("!=", b.fsub(total, right), left),
    ]


def _count(b: Builder, bits: Vector) -> Any:
    """How many of LANES bits are set."""
    ones = b.module.declare_intrinsic("llvm.ctpop", [_BITS])
    return b.zext(b.call(ones, [b.bitcast(bits, _BITS)]), _I64)


def _to_bf16(b: Builder, values: Vector) -> tuple[Vector, Vector]:
    """Numbers of fp32 rounded to nearest even, and bits that are set where that is Inf."""
    bits = b.bitcast(values, _of(_I32))
    last = b.and_(b.lshr(bits, _all(_I32, 16)), _all(_I32, 1))
    even = b.add(b.add(bits, _all(_I32, 0x7FFF)), last)
    too_large = b.icmp_unsigned(">=", _magnitude(b, even), _all(_I32, _INFINITE))
    return b.trunc(b.lshr(even, _all(_I32, 16)), _of(_I16)), too_large


def _magnitude(b: Builder, values: Vector) -> Vector:
    """The bits of fp32 numbers without their signs."""
    return b.and_(b.bitcast(values, _of(_I32)), _all(_I32, 0x7FFFFFFF))


def _widened(b: Builder, raw: Vector) -> Vector:
    """bf16 as fp32; fp32 as it is."""
    if raw.type.element == _F32:
        return raw
    return b.bitcast(b.shl(b.zext(raw, _of(_I32)), _all(_I32, 16)), _of(_F32))


def _splat(b: Builder, value: Any) -> Vector:
    nothing = _ir.Constant(_of(value.type), _ir.Undefined)
    first = b.insert_element(nothing, value, _I32(0))
    return b.shuffle_vector(first, nothing, _all(_I32, 0))


def _all(kind: Any, value: float) -> Vector:
    return _ir.Constant(_of(kind), [value] * LANES)


def _of(kind: Any) -> Any:
    return _ir.VectorType(kind, LANES)
