"""Amortized Bayesian meta-learning for LoRA."""
