"""Scores: suites, the one lm-eval adapter, typed result rows, statistics."""
