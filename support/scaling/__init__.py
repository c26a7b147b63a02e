"""Above one run on one machine: several machines, many runs."""
