"""Training tasks like those that users bring: what they are worth on sets that were not among them (README.md)."""
