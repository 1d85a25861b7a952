"""Files of one kind each, row by row, in constant memory; `data.local` is the way in."""
