"""The stand-alone command, `cpt-residual`, which is `python -m cpt_residual.cli`."""

from cpt_residual.cli.app import main

__all__ = ["main"]
