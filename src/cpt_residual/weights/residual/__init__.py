"""A residual: its format, how it is computed, how it is read."""
