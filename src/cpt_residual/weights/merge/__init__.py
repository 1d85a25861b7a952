"""A merge of opened inputs: rules per tensor, one pass, checks, records."""
