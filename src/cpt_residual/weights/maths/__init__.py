"""Arithmetic on blocks, compiled kernels, factors on alpha."""
