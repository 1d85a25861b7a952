"""Metric logging: JSON lines always, Weights & Biases on request."""
