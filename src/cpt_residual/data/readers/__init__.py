"""Readers of local files, row by row in constant memory; see `local`."""
