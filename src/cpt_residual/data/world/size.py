"""How large the procedural world is: the defaults are those of the tiny experiment."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cpt_residual.data.world.names import max_people
from cpt_residual.errors import ConfigError


@dataclass(frozen=True)
class WorldSize:
    """Counts of documents, dialogues, people and prompts; shares are probabilities."""

    num_general_documents: int = 12_000
    num_new_documents: int = 5_000
    num_donor_documents: int = 3_000
    num_heldout_documents: int = 150
    num_instructions: int = 14_000
    num_donor_instructions: int = 14_000
    num_tokenizer_documents: int = 5_000
    num_old_people: int = 60
    num_people_in_instructions: int = 40
    num_new_people: int = 16
    num_prompts_per_type: int = 12
    num_prompts_per_pair: int = 5
    share_plain: float = 0.15
    share_pairs: float = 0.2
    share_rewrites: float = 0.4

    def __post_init__(self) -> None:
        """Refuse worlds that cannot be drawn, naming every problem at once."""
        problems = [
            f"{item.name} must not be negative"
            for item in fields(self)
            if getattr(self, item.name) < 0
        ]
        if not 0 < self.num_people_in_instructions < self.num_old_people:
            problems.append(
                f"num_people_in_instructions={self.num_people_in_instructions} must lie between 1 "
                f"and num_old_people - 1 = {self.num_old_people - 1}: probes are about old people "
                "held out of the instructions"
            )
        if self.num_new_people < 1:
            problems.append(f"num_new_people={self.num_new_people} must be at least 1")
        if self.num_old_people + self.num_new_people > max_people() // 2:
            problems.append(
                f"num_old_people + num_new_people = {self.num_old_people + self.num_new_people} "
                f"leaves too few free names for strangers; at most {max_people() // 2}"
            )
        if self.share_plain + self.share_pairs > 1 or self.share_rewrites > 1:
            problems.append("share_plain + share_pairs and share_rewrites must not exceed 1")
        if problems:
            raise ConfigError("a world of this size cannot be drawn", problems=problems)
