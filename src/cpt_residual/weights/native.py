"""Kernels as machine code: compiled once, then called without numba.

numba takes half a second to import and to call its first function, which is a tenth of a merge. So
a kernel is compiled by it when it is wanted for the first time on a machine, and kept as an object
file: beside the source where that can be written, else in the user's cache directory, else only in
this process. Its name holds a hash of the source, the compilers and the processor; its bytes are
checked before they are used. Calls release the interpreter lock.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Iterator
from functools import cache, reduce
from importlib import metadata
from operator import add
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cpt_residual.core import kept

SYMBOL = "cpt_residual_kernel"
"""The function in the compiled code."""
LANES = 16
NUM_SUMS, NUM_COUNTS = 8, 4
"""Rows of a kernel's results."""

_NUM_ARRAYS = 4
_HERE = Path(__file__).parent
_SOURCES = ("kernel_bodies.py", "kernel_compiler.py", "kernel_vectors.py", "native.py")
_lock = threading.Lock()  # of the first use of a kernel


def run(
    name: str, *arrays: npt.NDArray[Any], factor: float = 1.0, num_sums: int, num_counts: int = 0
) -> tuple[list[float], list[int]]:
    """Runs the body `name` of kernel_bodies over all elements; its sums and its counts.

    arrays: two to four flat, contiguous, aligned arrays of one size, of uint16, float32 or float64.
    Raises ValueError for others: machine code does not look.
    """
    first = arrays[0]
    for each in arrays:
        if each.size != first.size or not (each.flags.c_contiguous and each.flags.aligned):
            raise ValueError(
                f"{name}: {each.size} elements beside {first.size}, or not in one piece"
            )
    given = arrays + (first,) * (_NUM_ARRAYS - len(arrays))
    kernel = _kernel(name, "".join(each.dtype.char for each in given))
    sums, counts = np.zeros((NUM_SUMS, LANES)), np.zeros((NUM_COUNTS, LANES), dtype=np.int64)
    places = [each.ctypes.data for each in given]
    kernel(*places, factor, first.size, sums.ctypes.data, counts.ctypes.data)
    totals = [reduce(add, lanes) for lanes in sums[:num_sums].tolist()]  # numpy's are pairwise
    return totals, counts[:num_counts].sum(axis=1).tolist()


def prepare() -> None:
    """Loads all that the first kernel needs but its code."""
    _identity()


_kernels: dict[tuple[str, str], Any] = {}


def _kernel(name: str, dtypes: str) -> Any:
    found = _kernels.get((name, dtypes))
    if found is None:
        with _lock:
            found = _kernels.get((name, dtypes)) or _linked(_code(name, dtypes))
            _kernels[name, dtypes] = found
    return found


def _code(name: str, dtypes: str) -> bytes:
    """The kernel's object file, from a folder where it is kept or new."""
    file = f"{name}-{dtypes}-{_identity()[:16]}.o"
    code = kept.recall(file, _folders())
    if code is None:
        from cpt_residual.weights.kernel_compiler import compile_kernel

        code = compile_kernel(name, dtypes, _machine())
        kept.keep(file, code, _folders())
    return code


def _folders() -> Iterator[Path]:
    yield _HERE / "__pycache__"
    yield from kept.user_folder()


@cache
def _identity() -> str:
    """What the code of all kernels depends on."""
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update(hashlib.sha256((_HERE / source).read_bytes()).digest())
    versions = [metadata.version(library) for library in ("numba", "llvmlite")]
    digest.update(" ".join([*versions, _llvm().get_process_triple(), *_processor()]).encode())
    return digest.hexdigest()


@cache
def _llvm() -> Any:
    import llvmlite.binding

    llvm = cast("Any", llvmlite.binding)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def _processor() -> tuple[str, str]:
    """Name and features of the processor."""
    return _llvm().get_host_cpu_name(), _llvm().get_host_cpu_features().flatten()


def _machine() -> Any:
    """A new one each time: an engine takes it over."""
    processor, features = _processor()
    target = _llvm().Target.from_default_triple()
    return target.create_target_machine(
        cpu=processor, features=features, opt=3, codemodel="jitdefault", jit=True
    )


_engines: list[Any] = []  # memory of the code


def _linked(code: bytes) -> Any:
    """The function of an object file, to be called with addresses."""
    llvm = _llvm()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(
        None,
        *[address] * _NUM_ARRAYS,
        ctypes.c_double,
        ctypes.c_int64,
        address,
        address,
    )
    place = engine.get_function_address(SYMBOL)
    assert place, "the compiler has put it there"
    return kind(place)
