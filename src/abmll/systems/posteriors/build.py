"""A posterior by its name."""

from typing import Any

from abmll.systems.posteriors.base import Parts, Posterior
from abmll.systems.posteriors.blob import BLoB
from abmll.systems.posteriors.cores.c_lora import CLoRA
from abmll.systems.posteriors.cores.core import Core
from abmll.systems.posteriors.cores.scalabl import ScalaBL
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
    "scalabl": ScalaBL,
    "c-lora": CLoRA,
    "core": Core,
}
"""Every posterior that `posterior.name` can be, besides `none`."""


def build_posterior(name: str, preset: str, given: dict[str, Any], parts: Parts) -> Posterior | None:
    """A posterior with nothing to draw from yet; None where it is `none`.

    Raises:
        AbmllError: unknown name, preset or setting, or a value out of range.
    """
    settings = resolve_posterior(name, given, preset)
    return None if settings is None else POSTERIORS[name](parts, settings)
