"""The interface of a way of adding: a configuration value that says what it reads and computes.

Notation: delta = theta_target - theta_base (the CPT delta), r = theta_instruct - theta_base (the
residual), lambda (`cpt_strength`) and alpha their factors. A result depends on the whole tensor
alone, never on how it is cut into blocks. Methods read no file, and import numpy inside their
functions: planning reads their configuration and does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from cpt_residual.base_model import Frozen

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    F64 = npt.NDArray[np.float64]


class WholeTensor(Protocol):
    """One tensor before its first block is merged. name: as messages call it; owner: its name in
    the residual, equal for tied copies. Every call of `residual` and of `cpt_delta` (needs the
    base) reads all elements once, in order."""

    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def residual(self) -> Iterable[F64]: ...
    def cpt_delta(self) -> Iterable[F64]: ...


@dataclass(frozen=True)
class Replaced:
    """The residual of one tensor has other elements: `elements(start, stop, read)`, flat, where
    `read()` gives the residual's own. reads_residual: whether it is ever called."""

    elements: Callable[[int, int, Callable[[], F64]], F64]
    reads_residual: bool = True


@dataclass(frozen=True)
class Joined:
    """One tensor becomes base + `displacement(cpt_delta, residual, (lambda, alpha))`."""

    displacement: Callable[[F64, F64, tuple[float, float]], F64]


@dataclass(frozen=True)
class Factors:
    """What a merge multiplies the CPT delta (`cpt`) and the residual of each tensor with (alpha and
    its scale), and how many elements each tensor has."""

    cpt: float
    residual: Mapping[str, float]
    num_elements: Mapping[str, int]


PerTensor = float | Mapping[str, float]


@dataclass(frozen=True)
class MergekitMerge:
    """The same merge in mergekit's terms: its method, the parameters of target, of instruct and of
    all, and comments on what differs."""

    method: str
    target: Mapping[str, PerTensor]
    instruct: Mapping[str, PerTensor]
    common: Mapping[str, bool | float]
    comments: list[str] = field(default_factory=list[str])


class Method(Frozen):
    """A way of adding. Subclasses give `kind`, a Literal with its default, and their options as
    fields whose descriptions are the help of the command line.

    words, paper: how a model card names it, and where it was published. needs_base: whether it
    reads theta_base. num_reads: how often the merge reads a tensor; above 1, what is read is kept
    in the page cache."""

    words: ClassVar[str]
    paper: ClassVar[str]
    needs_base: ClassVar[bool] = False
    num_reads: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """Its `kind`, by which configuration and command line choose it."""
        return str(type(self).model_fields["kind"].default)

    def for_tensor(self, tensor: WholeTensor) -> Replaced | Joined | None:
        """What is done to one tensor, from its own numbers; None: plain addition."""
        del tensor
        return None

    def memory_bytes(self, shape: tuple[int, ...], *, threads: int) -> int:
        """What `for_tensor` and the merge of such a tensor take beside blocks."""
        del shape, threads
        return 0

    def mergekit(self, factors: Factors) -> MergekitMerge | str:
        """The merge in mergekit's terms, or a line on why there is none."""
        del factors
        return f"method: {self.name}"
