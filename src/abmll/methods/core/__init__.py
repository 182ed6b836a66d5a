"""ABMLL in a core: B R A with a Gaussian over R, whose posterior is a Gaussian in closed form."""

from abmll.methods.core.method import CoreABMLL

__all__ = ["CoreABMLL"]
