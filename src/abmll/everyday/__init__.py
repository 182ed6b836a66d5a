"""Own-task sessions: from labelled rows to a saved posterior, its predictions, and a check whether it is of use."""
