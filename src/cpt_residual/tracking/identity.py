"""Who a tracked run is: the same stage of the same experiment has the same id, on any machine."""

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
        text = "\n".join((self.experiment, str(self.seed), self.node, self.fingerprint))
        return text_sha256(text)[:16]

    @property
    def group(self) -> str:
        return f"{self.experiment}-seed{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.node} seed {self.seed}"
