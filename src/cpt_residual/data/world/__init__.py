"""The procedural world of the tiny experiment: corpora, instructions and probes of one seed."""

from cpt_residual.data.world.checks import CHECKS, follows, states_fact
from cpt_residual.data.world.size import WorldSize
from cpt_residual.data.world.write import write_world

__all__ = ["CHECKS", "WorldSize", "follows", "states_fact", "write_world"]
