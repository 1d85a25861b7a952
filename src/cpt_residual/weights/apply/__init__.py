"""An apply from references to published models."""
