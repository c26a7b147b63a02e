"""Code that surrounds the paper: see docs/architecture.md."""
