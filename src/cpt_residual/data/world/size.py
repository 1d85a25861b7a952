"""How large the procedural world is: the defaults are those of the tiny experiment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorldSize:
    """Counts of documents, dialogues, people and prompts; shares are probabilities. The
    configuration (`config.corpora.World`) checks those that it sets."""

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
