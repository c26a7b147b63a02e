"""The files of a run that grow: episodes, written whole or not at all, and metrics."""
