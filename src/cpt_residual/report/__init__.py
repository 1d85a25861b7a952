"""What an experiment found: tables, figures, a verdict. Pure values in, bytes out; no torch."""
