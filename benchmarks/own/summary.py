"""What the answers of all cells come to: scores by set, size and system; results.json, a table and a figure.

    python -m benchmarks.own summary ANSWERS -o benchmarks/own

`ANSWERS` has a folder for each kind of system (a base model, or `cheap`), and in it a file for each cell:
`SYSTEM.test` and `SYSTEM.own`, probabilities of the test rows and, out of their fold, of the labelled rows;
`SYSTEM.seconds`, of fitting and of answering 1,000 rows; `test_answers` and `own_answers`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abmll.calibrators import ChoiceRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.metrics.calibration import calibration_noise_floor, expected_calibration_error
from abmll.metrics.scores import confidence_and_correct, floor_probabilities, negative_log_likelihood
from benchmarks.own.draws import Cell

Means = dict[str, dict[str, dict[str, dict[str, float]]]]
"""set -> "few" or "more" rows -> system -> score."""


@dataclass(frozen=True)
class Answers:
    """What one system said in one cell.

    Attributes:
        test, own: probabilities of the test rows, and of the labelled rows out of their fold.
        test_answers, own_answers: the right ones.
        seconds: of fitting, and of answering 1,000 rows.
    """

    test: np.ndarray
    own: np.ndarray
    test_answers: np.ndarray
    own_answers: np.ndarray
    seconds: tuple[float, float]

    def scores(self) -> dict[str, float]:
        """Accuracy, NLL as stated, and NLL and ECE at the posterior temperature that the labelled rows give."""
        calibrated = PosteriorTemperature().fit(_rows(self.own, self.own_answers)).apply(_rows(self.test))
        confidence, correct = confidence_and_correct(calibrated, self.test_answers)
        return {
            "accuracy": float(correct.mean()),
            "nll": negative_log_likelihood(_floored(self.test), self.test_answers),
            "nll_posterior": negative_log_likelihood(calibrated, self.test_answers),
            "ece_posterior": expected_calibration_error(confidence, correct),
            "ece_floor": calibration_noise_floor(confidence),
            "fit_seconds": self.seconds[0],
            "seconds_per_1000": self.seconds[1],
        }


def _floored(probabilities: np.ndarray) -> np.ndarray:
    choices = np.full(len(probabilities), probabilities.shape[1])
    return floor_probabilities(probabilities.astype(np.float64), choices)


def _rows(probabilities: np.ndarray, answers: np.ndarray | None = None) -> ChoiceRows:
    return ChoiceRows.from_scores(np.log(_floored(probabilities)), answers)


def read_answers(folder: Path) -> Iterator[tuple[str, Cell, Answers]]:
    """Every system's answers in every cell; a system's name begins with its folder's."""
    for path in sorted(folder.glob("*/*.npz")):
        name, size, draw = path.stem.rsplit("-", 2)
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                system, _, part = key.rpartition(".")
                if part != "test":
                    continue
                fields = (stored[f"{system}.test"], stored[f"{system}.own"], stored["test_answers"])
                answers = Answers(*fields, stored["own_answers"], tuple(stored[f"{system}.seconds"].tolist()))
                yield f"{path.parent.name} {system}", Cell(name, int(size), int(draw)), answers


def by_system(answers: Mapping[tuple[str, Cell], dict[str, float]]) -> Means:
    """set -> "few" or "more" rows -> system -> means over draws, with their number."""
    sizes: dict[str, list[int]] = {}
    for _, cell in answers:
        sizes.setdefault(cell.name, []).append(cell.size)
    gathered: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for (system, cell), scores in answers.items():
        size = "few" if cell.size == min(sizes[cell.name]) else "more"
        gathered.setdefault((cell.name, size, system), []).append(scores)
    out: Means = {}
    for (name, size, system), rows in sorted(gathered.items()):
        means: dict[str, Any] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        out.setdefault(name, {}).setdefault(size, {})[system] = {**means, "draws": len(rows)}
    return out
