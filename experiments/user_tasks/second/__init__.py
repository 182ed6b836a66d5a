"""The second section: training by both readings, on rows that a package may pass on (../README.md)."""
