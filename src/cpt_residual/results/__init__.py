"""What an experiment found: a table of scores, per-prompt outcomes, contrasts and their reading."""
