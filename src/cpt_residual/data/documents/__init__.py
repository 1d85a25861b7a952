"""What a document is, and what can be wrong with one."""
