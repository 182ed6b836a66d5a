"""Classifier, the estimator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from abmll.classifier.rows import Columns, answers_of, each_row, questions_of
from abmll.classifier.stored import FILE, Stored, read_stored
from abmll.config import parse_overrides
from abmll.errors import AbmllError
from abmll.everyday.adapt import HeldBackRows, check_enough_held_back, hold_back, parted
from abmll.everyday.labelled import Labelled
from abmll.everyday.shared_session import (
    TEMPERATURES,
    Posterior,
    SharedSession,
    check_free_folder,
    read_shared_session,
    saved_in,
    shared_session_of,
)
from abmll.metrics.abstention import conformal_threshold
from abmll.metrics.predictions import pad_probabilities
from abmll.systems.predict import Answer
from abmll.tables.labels import Classes
from abmll.tables.values import plain

PILOT = 1024
"""First rows of a call whose confidences fix the thresholds that are tested, as of `abmll predict`."""


class Classifier(ClassifierMixin, BaseEstimator):
    """Adapts a base model, or a trained run, to labelled examples, and gives calibrated probabilities.

    Examples are one of two kinds. *Plain classification*: texts (a list, an array, a Series, or the column `text` of
    rows or of a frame), with labels in `y` or a column `label`. *Multiple choice*: rows or a frame with the columns
    question, choices (or choice_0, ...) and answer, or `abmll.Question` objects; each row has choices of its own.
    Frames are those of pandas, Polars, Arrow and others that narwhals knows, or dictionaries of columns.

    Labels are texts, numbers, dates, true and false, bytes of UTF-8. What is one label in two forms (3, 3.0 and "3";
    "good" and " good"; True and "True") is one class, in `fit` as in `score`.

    Args:
        run: a base model (an id of the hub, a folder, a GGUF file, a name of `abmll bases`); a run directory of
            `abmll train`; or "smollm2", the adapter that comes with abmll.
        text: column of the texts.
        label: column of the labels, where `y` is not given.
        ask: what the model is asked about each text; None: a question made of the labels.
        steps: gradient steps of adapting; None: the run's own number, or one pass over the examples if that is more.
        samples: posterior draws of a prediction, which take their number times as long; None: the mean weights, which
            say nothing of a spread.
        hold_back: examples that are not adapted to, for `abstain_below_risk` and `predict_set`.
        abstain_below_risk: `predict` answers only where at most this share of the answers is wrong, at 90 % confidence
            (see `abmll.metrics.abstention`); None: every row. Each call has a threshold of its own, fixed by its rows.
        other: what `predict` gives for a row that is not answered.
        in_prompt: adapt nothing: the examples stand before every row in its prompt, as many as fit, which takes a base
            model that was not trained by abmll. A saved estimator then has them in clear.
        temperature: how the temperature of the probabilities is learned (docs/method.md, section 8). "folds": each
            fifth of the examples is answered after adapting to the others, which is five more adaptations; "prior": by
            what the run learned on its training tasks, nothing where it did not; "none": probabilities stay as the
            model states them. With `in_prompt` each example is answered with the others in its prompt, and "prior" is
            "none".
        seed: order of the examples.
        settings: further values of the run's configuration, as ("model.device=cpu",).

    Attributes:
        classes_: the labels, as they were given, sorted (plain classification); or 0, 1, ... K - 1, the indices of the
            choices, K the most that an example had (multiple choice), which is also what `predict` returns then.

    >>> Classifier(samples=4).get_params()["samples"]
    4
    """

    classes_: np.ndarray

    def __init__(
        self,
        run: str | Path = "smollm2",
        *,
        text: str = "text",
        label: str = "label",
        ask: str | None = None,
        steps: int | None = None,
        samples: int | None = None,
        hold_back: int = 0,
        abstain_below_risk: float | None = None,
        other: Any = None,
        in_prompt: bool = False,
        temperature: str = "folds",
        seed: int = 0,
        settings: Sequence[str] = (),
    ) -> None:
        self.run = run
        self.text = text
        self.label = label
        self.ask = ask
        self.steps = steps
        self.samples = samples
        self.hold_back = hold_back
        self.abstain_below_risk = abstain_below_risk
        self.other = other
        self.in_prompt = in_prompt
        self.temperature = temperature
        self.seed = seed
        self.settings = settings

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "Classifier":
        """Adapt to examples.

        Args:
            X: the examples, see above.
            y: their labels, or for multiple choice the indices or texts of the answers; None: they are in `X`.
            sample_weight: refused; examples count alike.

        Raises:
            AbmllError: an example is none (all of them, by number), `y` is missing or of another length, weights are
                given, too few examples are left or held back, the run cannot be had, or `in_prompt` is asked of one
                that was trained or has a chat template.
        """
        self._check_params(sample_weight)
        rows = self._columns.rows(X)
        layout, classes, answers = self._columns.kind(rows, y)
        labelled = Labelled(layout, tuple(questions_of(rows, layout, answers)))
        shared = shared_session_of(self.run, parse_overrides(self.settings))
        seed = shared.session.tuned(self._tuning()).config.adaptation.seed
        used, aside = parted(labelled, hold_back(labelled.clusters, self.hold_back, seed, "hold_back="))
        asked = shared.in_prompt(self._tuning()) if self.in_prompt else self._tuning()
        tuning = shared.decided(used.rows, asked)
        fitting = shared.put_in_prompt if self.in_prompt else shared.fit
        self._posterior: Posterior = fitting("classifier", used.rows, tuning)
        self._tuned = tuning
        self._saved: tuple[str, str] | None = None
        self._shared: SharedSession = shared
        self._layout = layout
        if self.in_prompt:
            self._temperature = shared.learn_temperature_in_prompt(self._posterior, used, tuning, self.temperature)
        else:
            self._temperature = shared.learn_temperature(used, tuning, self.temperature)
        self._held_back = HeldBackRows((), ())
        if aside:
            of_rows = shared.answer(self._posterior, aside, tuning)
            self._held_back = HeldBackRows.of(of_rows, aside)
        most = max(len(question.choices) for question in labelled.rows)
        self.classes_ = np.arange(most) if classes is None else classes
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "N K"]:
        """Probabilities of the classes, averaged over the posterior draws, at the temperature that `fit` learned.

        Returns:
            float64, the columns in the order of `classes_`. For multiple choice zeros stand after a row's last choice,
            and there are more columns than classes where a row has more choices than any example had.

        Raises:
            NotFittedError: `fit` was not called.
            AbmllError: a row is none.
        """
        found = self.answers(X)
        return pad_probabilities([answer.probabilities for answer in found], len(self.classes_))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row: a label, or (multiple choice) the index of a choice.

        With `abstain_below_risk` a row below the threshold gets `other`, and the array is one of objects.

        Raises:
            NotFittedError, AbmllError: as `predict_proba`; or no threshold keeps the promise.
        """
        answers = self.answers(X)
        choices = np.array([answer.choice for answer in answers], dtype=np.int64)
        classes = choices if self._layout.labels is None else self.classes_[choices]
        if self.abstain_below_risk is None or not answers:
            return classes
        confidence = np.array([answer.confidence for answer in answers])
        threshold = self._held_back.threshold(confidence[:PILOT], self.abstain_below_risk, self._temperature)
        found = classes.astype(object)
        found[confidence < threshold] = self.other
        return found

    def predict_set(self, X: Any, risk: float = 0.1) -> list[np.ndarray]:
        """The classes that each row may have: sets that miss the right one with probability `risk` at most.

        They are split-conformal sets by the rows that `hold_back` held back (`conformal_threshold` of
        `abmll.metrics.abstention`), and always hold the most probable class. The promise is over rows drawn alike, both
        those held back and those to come; not for each class or row.

        Returns:
            One array a row, the most probable class first.

        Raises:
            NotFittedError, AbmllError: as `predict_proba`; or too few rows were held back for this risk.
        """
        answers = self.answers(X)
        least = conformal_threshold(self._held_back.of_truth(self._temperature), risk)
        sets = []
        for answer in answers:
            p = np.array(answer.probabilities)
            order = np.argsort(-p, kind="stable")
            chosen = order[: max(1, int((p >= least).sum()))]
            sets.append(chosen if self._layout.labels is None else self.classes_[chosen])
        return sets

    def answers(self, X: Any, *, raw: bool = False) -> tuple[Answer, ...]:
        """Everything that is said of each row: probabilities, confidence, spread over posterior draws, information.

        Args:
            X: the rows.
            raw: give probabilities and confidence as the model states them, without the temperature that `fit` learned.
                Spread and information are of those in any case.

        Raises:
            NotFittedError, AbmllError: as `predict_proba`.
        """
        check_is_fitted(self, "classes_")
        stated = self._shared.answer(
            self._posterior, questions_of(self._columns.rows(X), self._layout, None), self._tuned
        )
        return stated if raw or self._temperature is None else self._temperature.answers(stated)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Share of the rows whose most probable class is right, by `y` or else by the labels in `X`; none is left out.

        Raises:
            NotFittedError, AbmllError: as `predict_proba`; or there are no rows, or no labels.
        """
        check_is_fitted(self, "classes_")
        rows = self._columns.rows(X)
        if not rows:
            raise AbmllError("no rows to score")
        if self._layout.labels is None:
            truth = [question.answer for question in questions_of(rows, self._layout, answers_of(rows, y))]
        else:
            classes = Classes(self.classes_)  # a label that no example had is one that was not predicted
            truth = each_row(self._columns.labels(rows, y), lambda number, label: classes.index(label))
        right = [answer.choice == true for answer, true in zip(self.answers(rows), truth, strict=True)]
        return float(np.average(right, weights=sample_weight))

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Keep the fitted estimator as a folder, which stock PEFT loads too; `Classifier.load` reads it.

        Args:
            folder: where; what is there already is refused.
            replace: put it in the place of an estimator that was saved there, as `abmll adapt --replace` does.

        Raises:
            NotFittedError: `fit` was not called.
            AbmllError: something is there already, and `replace` is not set, or it is no folder of `save`.
            OSError: the folder cannot be written; an earlier folder is then as it was.
        """
        check_is_fitted(self, "classes_")
        check_free_folder(Path(folder), FILE, replace)
        params = {name: str(value) if isinstance(value, Path) else value for name, value in self.get_params().items()}
        params |= {"settings": list(self.settings), "other": plain(self.other)}
        learned = self._layout, self.classes_, self._held_back, self._temperature, self._posterior.examples
        self._shared.write(self._posterior, Path(folder), Stored(params, *learned).write, self._tuned)
        self._saved = saved_in(Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "Classifier":
        """A fitted estimator that was saved.

        Raises:
            AbmllError: the folder is no such thing, is damaged, or its base model cannot be had.
        """
        folder = Path(folder)
        stored = read_stored(folder, cls)
        found = cls(**stored.params)
        found._held_back, found._temperature = stored.held_back, stored.temperature
        found._shared, found._posterior = read_shared_session(folder, stored.examples)
        found._layout, found._tuned, found.classes_ = stored.layout, found._tuning(), stored.classes
        found._saved = saved_in(folder)
        return found

    @classmethod
    def _load_same(cls, folder: str, adapter: str) -> "Classifier":
        """What a pickle of a saved estimator calls: `load`, if it is still the one that was saved there."""
        found = cls.load(folder)
        if found._saved != (folder, adapter):
            raise AbmllError(f"{folder}: another Classifier was saved there since this one was pickled")
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Unfitted it is copied as ever; fitted it holds a model, and a pickle has the path of its folder instead."""
        if not hasattr(self, "classes_"):
            return super().__reduce_ex__(protocol)
        if self._saved is None:
            _no_pickle()
        return type(self)._load_same, self._saved

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        tags.target_tags.required = False  # answers may be in the examples
        return tags

    @property
    def _columns(self) -> Columns:
        return Columns(self.text, self.label, self.ask)

    def _check_params(self, sample_weight: Any) -> None:
        if sample_weight is not None:
            raise AbmllError(
                "fit: sample_weight is not taken, as each example counts alike in a step of adapting. Give a row that "
                "should count more several times, leave out those that should not count, or draw rows by their weights"
            )
        if self.temperature not in TEMPERATURES:
            raise AbmllError(f"temperature={self.temperature!r}: expected one of {', '.join(TEMPERATURES)}")
        if self.in_prompt and self.steps is not None:
            raise AbmllError(f"in_prompt=True takes no steps (steps={self.steps}): nothing is adapted")
        if self.abstain_below_risk is not None:
            check_enough_held_back(self.abstain_below_risk, self.hold_back)

    def _tuning(self) -> dict[str, Any]:
        given = {"steps": self.steps, "samples": self.samples, "seed": self.seed}
        return {"adaptation": {name: value for name, value in given.items() if value is not None}}


def _no_pickle() -> NoReturn:
    raise AbmllError(
        "a fitted Classifier holds a model and is not pickled or copied: save(folder) first, which the pickle then "
        "names, or Classifier.load(folder)"
    )
