"""Meta-training: inner steps, outer steps, optimizers, checkpoints, going on after a stop."""
