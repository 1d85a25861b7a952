"""Plain addition: target + alpha * residual."""

from __future__ import annotations

from typing import ClassVar, Literal

from cpt_residual.methods.method import Factors, MergekitMerge, Method


class Add(Method):
    """target + alpha * residual (Jindal et al. 2024, eq. 2)."""

    kind: Literal["add"] = "add"
    words: ClassVar[str] = "plain addition, as in the paper"
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.10739"

    def mergekit(self, factors: Factors) -> MergekitMerge:
        """Task arithmetic around the base."""
        return MergekitMerge(
            "task_arithmetic",
            target={"weight": factors.cpt},
            instruct={"weight": factors.residual},
            common={"normalize": False},
        )
