"""Compiles a kernel to machine code that needs nothing of numba to run. See `native`."""

from __future__ import annotations

from typing import Any, cast

import llvmlite.binding
import numba
from numba import types

from cpt_residual.errors import LaunchError
from cpt_residual.weights import kernel_bodies, kernel_vectors
from cpt_residual.weights.native import SYMBOL


def compile_kernel(name: str, dtypes: str, machine: Any) -> bytes:
    """An object file for the processor of `machine` (llvmlite's) with the kernel as SYMBOL: the
    body of that name in `kernel_bodies`, for four arrays of these dtypes (numpy's characters).
    Raises LaunchError where numba was told to compile otherwise, or not at all."""
    if cast("Any", numba).config.DISABLE_JIT:
        raise _told_otherwise(name, "numba is told not to compile")
    numba_types, llvm = cast("Any", types), cast("Any", llvmlite.binding)
    kinds = {"H": numba_types.uint16, "f": numba_types.float32, "d": numba_types.float64}
    arrays = [numba_types.CPointer(kinds[dtype]) for dtype in dtypes]
    results = [numba_types.CPointer(kind) for kind in (numba_types.float64, numba_types.int64)]
    signature = numba_types.void(*arrays, numba_types.float64, numba_types.int64, *results)
    entry = kernel_bodies.over_all(getattr(kernel_bodies, name))
    compiled = cast("Any", numba).cfunc(signature, boundscheck=False)(entry)
    module = llvm.parse_assembly(compiled.inspect_llvm())
    vectors = kernel_vectors.kernel_module(name, dtypes)
    loop = module.get_function(compiled.native_name)
    loop.name = SYMBOL if vectors is None else kernel_vectors.LOOP
    if vectors is not None:
        module.link_in(llvm.parse_assembly(vectors))
    for function in module.functions:
        if function.name != SYMBOL and not function.is_declaration:
            function.linkage = "internal"
    # What numba would do if a body failed, which none can, now shows to be unreachable.
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    _require_alone(name, module)
    return machine.emit_object(module)


def _require_alone(name: str, module: Any) -> None:
    names = [*module.functions, *module.global_variables]
    foreign = [
        each.name for each in names if each.is_declaration and not each.name.startswith("llvm.")
    ]
    if foreign:
        raise _told_otherwise(name, f"the machine code needs {', '.join(foreign[:3])}")


def _told_otherwise(name: str, problem: str) -> LaunchError:
    return LaunchError(
        f"The kernel {name} cannot be compiled to run without numba",
        problems=[problem],
        remedy="Nothing was published. Unset NUMBA_DISABLE_JIT, NUMBA_BOUNDSCHECK, NUMBA_OPT, "
        "NUMBA_DEBUGINFO and the like, which change what numba makes, and run it again.",
    )
