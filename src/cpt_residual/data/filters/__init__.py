"""What is done to documents between a reader and a corpus; `chain` is the way in."""
