"""Scientific comparisons as build targets: one JSON per run, and running again does only what is missing."""
