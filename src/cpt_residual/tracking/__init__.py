"""Where series go: JSON lines always, Weights & Biases as asked."""
