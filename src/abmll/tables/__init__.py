"""Rows as users have them: files and frames of every kind, read as rows, checked, and written."""
