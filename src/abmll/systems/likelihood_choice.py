"""`likelihood.kind: auto`: letters or cloze, by what the base model itself makes of labelled rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from abmll.calibrators.rows import ChoiceRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.config import MethodConfig, RunConfig
from abmll.errors import AbmllError
from abmll.models import LanguageModel
from abmll.prompts.encode import LETTERS, LikelihoodKind
from abmll.question import Question
from abmll.systems.build import build_system
from abmll.systems.plans import PredictionPlan

KINDS: tuple[LikelihoodKind, ...] = ("letter", "cloze")


@dataclass(frozen=True)
class LikelihoodChoice:
    """A likelihood, and why it was taken.

    Attributes:
        kind: the one that was taken.
        nll: of each that could be measured: mean NLL of the rows by the base model, nats, at the temperatures that
            the rows make likely.
        why: in words.
    """

    kind: LikelihoodKind
    nll: Mapping[LikelihoodKind, float]
    why: str


def choose_likelihood(config: RunConfig, base: LanguageModel, rows: Sequence[Question]) -> LikelihoodChoice:
    """Measure the base model, as it is, on labelled rows by both likelihoods; the lower NLL is taken.

    The answers of each are averaged over `PosteriorTemperature`'s posterior given the same rows, by its weak prior: a
    likelihood is not worse for being too sure, which adapting mends.

    Args:
        config: of the run; its other settings of the likelihood hold for both.
        base: without adapters on it.
        rows: with their answers, and no others than those that will be adapted to.

    Raises:
        AbmllError: neither can be measured: a row does not fit the model, or no answer is finite.
    """
    most = max(len(row.choices) for row in rows)
    if most > len(LETTERS):
        return LikelihoodChoice("cloze", {}, f"`cloze`: {most} choices are more than there are letters")
    found, broken = dict[LikelihoodKind, float](), dict[LikelihoodKind, AbmllError]()
    for kind in KINDS:
        try:
            found[kind] = base_nll(config, base, kind, rows)
        except AbmllError as error:  # not finite; or letters are no single tokens of this model
            broken[kind] = error
    if not found:
        raise broken["cloze"]
    best = min(found, key=lambda kind: found[kind])
    numbers = ", ".join(f"{kind} {found[kind]:.3f}" if kind in found else f"{kind} cannot be" for kind in KINDS)
    return LikelihoodChoice(best, found, f"`{best}`: the base model's NLL of these rows is {numbers} nats")


def base_nll(config: RunConfig, base: LanguageModel, kind: LikelihoodKind, rows: Sequence[Question]) -> float:
    """Mean NLL of labelled rows by the base model and one likelihood, at the temperatures that the rows make likely."""
    likelihood = config.likelihood.model_copy(update={"kind": kind})
    plain = config.model_copy(update={"likelihood": likelihood, "method": MethodConfig(name="pretrained")})
    system = build_system(plain, base)
    try:
        predicted = system.predict(rows, PredictionPlan("mean", 1, config.adaptation.batch_tokens))
    finally:
        system.close()
    stated = ChoiceRows.from_predictions(predicted)
    calibrated = PosteriorTemperature().fit(stated).apply(stated)
    return float(-np.log(calibrated[np.arange(len(rows)), stated.answers]).mean())
