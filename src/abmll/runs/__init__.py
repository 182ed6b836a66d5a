"""Run directories: what was computed, on what, by which configuration; single runs and comparisons."""
