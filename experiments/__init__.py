"""Scientific comparisons as build targets: re-running does only what is missing."""
