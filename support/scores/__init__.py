"""Published results, and their comparison with local runs."""
