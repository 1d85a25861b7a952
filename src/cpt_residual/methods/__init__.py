"""Ways of adding a residual, one file each: configuration, maths, words, paper."""
