"""Environments at work: each in a process of its own, all stepped together."""
