"""Our lm-eval tasks: yaml templates, and the functions they name."""
