"""Laplace-LoRA: its posterior, the curvature that it is made of, and the prior's precision."""

from abmll.systems.posteriors.laplace.posterior import Laplace

__all__ = ["Laplace"]
