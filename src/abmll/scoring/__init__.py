"""Scores of whole predictions files: the library's own, those that others register, and the posterior temperature."""
