"""Readers of local files, one kind per module, row by row in constant memory; see `local`."""
