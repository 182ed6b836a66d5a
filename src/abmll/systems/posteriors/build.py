"""A posterior by its name."""

from abmll.config import PosteriorConfig
from abmll.systems.posteriors.base import Parts, Posterior
from abmll.systems.posteriors.blob import BLoB
from abmll.systems.posteriors.ensemble import Ensemble
from abmll.systems.posteriors.ivon import IVON
from abmll.systems.posteriors.laplace import Laplace
from abmll.systems.posteriors.settings import resolve_posterior
from abmll.systems.posteriors.swag import SWAG
from abmll.systems.posteriors.tfb import TFB

POSTERIORS: dict[str, type[Posterior]] = {
    "laplace": Laplace,
    "tfb": TFB,
    "swag": SWAG,
    "ensemble": Ensemble,
    "ivon": IVON,
    "blob": BLoB,
}
"""Every posterior that `posterior.name` can be, besides `none`."""


def build_posterior(chosen: PosteriorConfig, parts: Parts) -> Posterior | None:
    """A posterior with nothing to draw from yet; None where it is `none`.

    Raises:
        AbmllError: unknown name, preset or setting, or a value out of range.
    """
    settings = resolve_posterior(chosen.name, chosen.settings(), chosen.preset)
    return None if settings is None else POSTERIORS[chosen.name](parts, settings)
