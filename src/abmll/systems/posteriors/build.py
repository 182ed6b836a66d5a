"""A posterior by its name."""

from typing import Any

from abmll.errors import AbmllError
from abmll.methods.fitted import Fitted
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
OF_A_POINT = ("laplace", "tfb", "core")
"""Those that are made at a phi, however it was found; the others are made of gradient steps on a task."""


def build_posterior(name: str, preset: str, given: dict[str, Any], parts: Parts) -> Posterior | None:
    """A posterior with nothing to draw from yet; None where it is `none`.

    Raises:
        AbmllError: unknown name, preset or setting, or a value out of range; or a posterior made of gradient steps,
            where the method takes none.
    """
    settings = resolve_posterior(name, given, preset)
    if settings is not None and isinstance(parts.method, Fitted) and name not in OF_A_POINT:
        raise AbmllError(
            f"posterior.name={name} is made of gradient steps on a task, and method.name=core takes none: use "
            f"posterior.name={' or '.join(OF_A_POINT)}, or none"
        )
    return None if settings is None else POSTERIORS[name](parts, settings)
