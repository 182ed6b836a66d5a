"""`abmll doctor`: what this machine can do, and what a batch that was not finite looks like."""
