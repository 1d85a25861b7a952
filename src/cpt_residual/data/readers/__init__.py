"""File readers, one per format, streaming in constant memory."""
