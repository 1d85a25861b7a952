"""What can be measured on models: distance, geometry, contents."""
