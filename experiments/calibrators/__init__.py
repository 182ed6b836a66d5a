"""Which calibrator: all of them on the stored answers to the training tasks, one task left out at a time."""
