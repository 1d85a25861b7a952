"""Stable W&B run ids: the same stage of the same experiment has the same id on any machine."""

from __future__ import annotations

from dataclasses import dataclass

from cpt_residual.core.hashing import text_sha256


@dataclass(frozen=True)
class RunIdentity:
    """One stage of one experiment. The fingerprint makes another recipe another run; the node
    keeps two stages that share one artifact apart."""

    experiment: str
    seed: int
    stage: str
    node: str
    fingerprint: str

    @property
    def run_id(self) -> str:
        """16 hexadecimal digits; deterministic, so that a resumed stage continues its run."""
        return self._id()

    @property
    def other_ids(self) -> tuple[str, ...]:
        """What takes the place of `run_id` on a server where that run was deleted: W&B never takes
        such an id again."""
        return (self._id("2"), self._id("3"))

    def attempt_id(self, attempt: int) -> str:
        """The id of an attempt that does not go on with the earlier ones; `run_id` for 0."""
        return self._id(f"attempt {attempt}") if attempt else self.run_id

    def _id(self, *more: str) -> str:
        text = "\n".join((self.experiment, str(self.seed), self.node, self.fingerprint, *more))
        return text_sha256(text)[:16]

    @property
    def group(self) -> str:
        return f"{self.experiment}-seed{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.node} seed {self.seed}"
