"""Suites of evaluations: a folder for each kind, found by `config.suites`."""
