"""What an experiment found: tables, figures, a verdict. Values in, bytes out."""
