"""What one system said in one cell, and what that is worth.

`ANSWERS` has a folder for each kind of system (a base model, or `cheap`), and in it a file for each cell:
`SYSTEM.test` and `SYSTEM.own`, probabilities of the test rows and, out of their fold, of the labelled rows;
`SYSTEM.seconds`, of fitting and of answering 1,000 rows; or `SYSTEM.not_finite`, why there are none of these; and
`test_answers` and `own_answers`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from abmll.calibrators import ChoiceRows, TaskRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.metrics.calibration import calibration_noise_floor, expected_calibration_error
from abmll.metrics.scores import confidence_and_correct, floor_probabilities, negative_log_likelihood
from benchmarks.own.draws import Cell


@dataclass(frozen=True)
class Answers:
    """What one system said in one cell.

    Attributes:
        test, own: probabilities of the test rows, and of the labelled rows out of their fold.
        test_answers, own_answers: the right ones.
        seconds: of fitting, and of answering 1,000 rows.
        not_finite: why there is no answer, and a uniform guess stands for it; None where there is one.
        prior: of the temperature; the weak one, or one that was learned from other sets, see `with_learned_priors`.
    """

    test: np.ndarray
    own: np.ndarray
    test_answers: np.ndarray
    own_answers: np.ndarray
    seconds: tuple[float, float]
    not_finite: str | None = None
    prior: PosteriorTemperature = field(default_factory=PosteriorTemperature)

    @cached_property
    def calibrated(self) -> np.ndarray:
        """Probabilities of the test rows at the posterior temperature that the labelled rows give."""
        return self.prior.fit(rows_of(self.own, self.own_answers)).apply(rows_of(self.test))

    def scores(self) -> dict[str, float]:
        """Accuracy; NLL and ECE as stated, and at the posterior temperature, with the floor of each ECE; seconds."""
        stated, after = floored(self.test), self.calibrated
        out = {
            "nll_uniform": float(np.log(stated.shape[1])),
            "nll": negative_log_likelihood(stated, self.test_answers),
            "nll_posterior": negative_log_likelihood(after, self.test_answers),
        }
        for ending, table in (("", stated), ("_posterior", after)):
            confidence, correct = confidence_and_correct(table, self.test_answers)
            out["accuracy"] = float(correct.mean())
            out[f"ece{ending}"] = expected_calibration_error(confidence, correct)
            out[f"ece_floor{ending}"] = calibration_noise_floor(confidence)
        return out | {"fit_seconds": self.seconds[0], "seconds_per_1000": self.seconds[1]}


def floored(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities of K choices each, none of them 0."""
    choices = np.full(len(probabilities), probabilities.shape[1])
    return floor_probabilities(probabilities.astype(np.float64), choices)


def rows_of(probabilities: np.ndarray, answers: np.ndarray | None = None) -> ChoiceRows:
    """Probabilities as what a calibrator takes."""
    return ChoiceRows.from_scores(np.log(floored(probabilities)), answers)


ADAPTED = " adapted"
"""How the name of a system ends that is a new LoRA."""
Found = dict[tuple[str, Cell], Answers]
"""System and cell -> answers."""


def with_learned_priors(found: Mapping[tuple[str, Cell], Answers]) -> Found:
    """The same answers, those of a new LoRA with the prior of the temperature that the *other* sets' cells give.

    So no number of a set depends on that set's prior. Answers that are not finite teach nothing.
    """
    sets = dict.fromkeys((system, cell.name) for system, cell in found if system.endswith(ADAPTED))
    priors = {(system, name): learned_prior(found, system, but=name) for system, name in sets}
    return {
        (system, cell): replace(said, prior=priors.get((system, cell.name), said.prior))
        for (system, cell), said in found.items()
    }


def learned_prior(found: Mapping[tuple[str, Cell], Answers], system: str, but: str = "") -> PosteriorTemperature:
    """The prior by empirical Bayes of the answers out of folds that a system has in all cells but those of one set.

    Args:
        found: all answers.
        system: whose; the end of its name is enough, and then it is of all that end so.
        but: name of the set that is left out.
    """
    cells = [
        TaskRows(cell.file, rows_of(said.own, said.own_answers), rows_of(said.test, said.test_answers))
        for (name, cell), said in found.items()
        if name.endswith(system) and cell.name != but and said.not_finite is None
    ]
    return PosteriorTemperature().meta_fit(cells)


def read_answers(folder: Path) -> Iterator[tuple[str, Cell, Answers]]:
    """Every system's answers in every cell; a system's name begins with its folder's."""
    for path in sorted(folder.glob("*/*.npz")):
        name, size, draw = path.stem.rsplit("-", 2)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        for key in arrays:
            system, _, part = key.rpartition(".")
            if part in ("test", "not_finite"):
                yield f"{path.parent.name} {system}", Cell(name, int(size), int(draw)), _answers(arrays, system)


def _answers(arrays: dict[str, np.ndarray], system: str) -> Answers:
    right = (arrays["test_answers"].astype(np.int64), arrays["own_answers"].astype(np.int64))
    why = arrays.get(f"{system}.not_finite")
    if why is None:
        fitting, answering = arrays[f"{system}.seconds"].tolist()
        return Answers(arrays[f"{system}.test"], arrays[f"{system}.own"], *right, (fitting, answering))
    labels = next(table.shape[1] for key, table in arrays.items() if key.endswith(".test"))
    uniform = [np.full((len(answers), labels), 1 / labels) for answers in right]
    return Answers(uniform[0], uniform[1], *right, (float("nan"), float("nan")), str(why))
