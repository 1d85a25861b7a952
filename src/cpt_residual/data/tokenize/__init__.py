"""Documents to token ids, in this process or ahead of it in others."""
