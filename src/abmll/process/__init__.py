"""The process: stopping it, its ranks, locks, the machine it runs on."""
