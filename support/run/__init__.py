"""What a run has besides its agent: saving, logging, showing, several machines."""
