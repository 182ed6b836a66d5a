"""A posterior by its name."""

from abmll.config import RunConfig
from abmll.systems.posteriors.base import Parts, Posterior
from abmll.systems.posteriors.ensemble import Ensemble
from abmll.systems.posteriors.laplace import Laplace
from abmll.systems.posteriors.settings import resolve_posterior
from abmll.systems.posteriors.swag import SWAG
from abmll.systems.posteriors.tfb import TFB

POSTERIORS: dict[str, type[Posterior]] = {"laplace": Laplace, "tfb": TFB, "swag": SWAG, "ensemble": Ensemble}
"""Every posterior that `posterior.name` can be, besides `none`."""


def build_posterior(config: RunConfig, parts: Parts) -> Posterior | None:
    """The posterior of a configuration, with nothing to draw from yet; None where it has none."""
    settings = resolve_posterior(config.posterior)
    return None if settings is None else POSTERIORS[config.posterior.name](parts, settings)
