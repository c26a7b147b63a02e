"""Episodes on disk, written whole or not at all, and drawn from in batches."""
