"""What a run has besides its agent: saving, reporting, showing."""
