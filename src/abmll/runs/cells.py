"""The cells of a table: a system's answers to one unseen task after one adaptation, each a file; or why it has none."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from abmll.errors import NonFiniteError
from abmll.methods.noise import Coordinates, cell_coordinates
from abmll.metrics.not_finite import ADAPTING, END, PREDICTING, NotFinite, read_not_finite
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.process.timer import Timer
from abmll.question import CONTENT_FREE, Question, Task, without_content
from abmll.runs.prepare import Run
from abmll.systems.folds import Answered, held_out
from abmll.systems.meta_rows import META_DRAW
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.predict import examples_of
from abmll.systems.scale import MEAN, OWN, StoredScale, read_scale
from abmll.systems.system import System
from abmll.training.failed_batch import save_batch
from abmll.training.finite import without_folders

BEFORE = "before-adaptation"
"""The folder of predictions by the shared weights as they are."""


@dataclass(frozen=True)
class Cell:
    """What one file of predictions is of.

    Attributes:
        task: adapted to, and answered.
        draw: number of the draw of examples.
        step: meta-iteration whose shared weights are adapted.
        examples: that meta-training had used until then.
        where: folder of its file: `BEFORE`, or that of a point of the curve.
        plan: of the adaptation.
        folds: into which the examples are dealt, to be answered held out; 0: they are not.
    """

    task: Task
    draw: int
    step: int
    examples: int
    where: str
    plan: AdaptationPlan
    folds: int = 0


@dataclass(frozen=True)
class Cells:
    """All cells of a run; the second row of the table, if there is one, answers by the mean weights."""

    run: Run

    def file(self, name: str, where: str, draw: int, task: Task) -> Path:
        """Where a row's predictions are."""
        folder = self.run.predictions[self.run.rows.index(name)]
        return folder / where / f"draw-{draw}" / f"{task.name}.jsonl"

    def marker(self, name: str, where: str, draw: int, task: Task) -> Path:
        """Where it is said that they are not finite."""
        return self.file(name, where, draw, task).with_name(f"{task.name}{END}")

    def exist(self, where: str, draw: int, tasks: Iterable[Task]) -> bool:
        """Whether every row has its predictions, or the word that they are not finite."""
        cells = [(name, where, draw, task) for name, task in itertools.product(self.run.rows, tasks)]
        return all(self.file(*cell).exists() or self.marker(*cell).exists() for cell in cells)

    def remove(self, where: str, draw: int, task: Task) -> None:
        """Remove what is there of a cell, in every row."""
        for name in self.run.rows:
            self.file(name, where, draw, task).unlink(missing_ok=True)
            self.marker(name, where, draw, task).unlink(missing_ok=True)

    def markers(self) -> Iterator[tuple[Path, NotFinite]]:
        """Every cell that is not finite, with its file.

        Raises:
            AbmllError: such a file is damaged.
        """
        for folder in self.run.predictions:
            for path in sorted(folder.glob(f"*/draw-*/*{END}")):
                yield path, read_not_finite(path)

    def make(self, system: System, cell: Cell, timer: Timer, *, anew: bool = False) -> None:
        """Adapt to a task and write the predictions of every row, unless they are there.

        Of a cell that is there in part nothing stays: a row's file and its marker would contradict each other.

        Args:
            system: holds theta.
            cell: to make.
            timer: adds up the seconds.
            anew: make it also where it is there; each file stays until the new one takes its place.

        Raises:
            NonFiniteError: an adaptation or prediction is not finite, and the run does not record that as a result.
        """
        if not anew and self.exist(cell.where, cell.draw, (cell.task,)):
            self._put_priors(cell)
            return
        if not anew:
            self.remove(cell.where, cell.draw, cell.task)
        predict = partial(self._predict, system, cell_coordinates(self.run.seed, cell.draw, cell.task.name))
        try:
            with timer("adapt_seconds"):
                held_out_rows = self._held_out(system, cell, predict)
                examples = self.adapt(system, cell.task, cell.plan, cell.draw)
        except NonFiniteError as error:
            self.mark(cell, ADAPTING, error)
            return
        with timer("predict_seconds"):
            asked = self.run.scored(cell.task), examples, self._content_free(cell.task)
            parts = [predict(questions, examples) for questions in asked]
        parts.insert(2, held_out_rows or [()] * len(self.run.rows))
        for name, rows in zip(self.run.rows, zip(*parts, strict=True), strict=True):
            self._write(name, cell, rows)

    def answer_episode(self, system: System, episode: Task) -> list[Answered]:
        """The test rows of an episode of a training task, answered by each row after adapting to its train rows."""
        examples = system.adapt(episode, self.run.adaptation, META_DRAW)
        return self._predict(system, cell_coordinates(self.run.seed, META_DRAW, episode.name), episode.test, examples)

    def have_priors(self, cell: Cell) -> bool:
        """Whether the predictions that are there of a cell carry the priors of the temperature that they should.

        Raises:
            AbmllError: the prior or a predictions file is damaged.
        """
        return not list(self._without_priors(cell))

    def _put_priors(self, cell: Cell) -> None:
        """Write the priors into predictions that are there, and were made before these were learned."""
        for path, predictions in self._without_priors(cell):
            predictions.write(path)

    def _without_priors(self, cell: Cell) -> Iterator[tuple[Path, Predictions]]:
        """The predictions of a cell whose header lacks its prior, or has another one; as they should be."""
        priors = [(name, self._prior(name, cell)) for name in self.run.rows]
        for name, prior in priors:
            path = self.file(name, cell.where, cell.draw, cell.task)
            if prior is not None and path.exists() and (there := read_predictions(path)).scale_prior != prior:
                yield path, replace(there, scale_prior=prior)

    @cached_property
    def _scale(self) -> StoredScale | None:
        return read_scale(self.run.folder)

    def _prior(self, name: str, cell: Cell) -> tuple[float, float] | None:
        """Of log T, for a row's predictions; None where it was not learned of weights and settings like the cell's."""
        stored = self._scale
        of_cell = cell.step, cell.where == BEFORE, cell.plan
        if stored is None or not stored.is_of(self.run) or of_cell != (stored.step, False, self.run.adaptation):
            return None
        prior = stored.scale.calibrator((OWN, MEAN)[self.run.rows.index(name)])
        return prior.mu, prior.sd

    def mark(self, cell: Cell, stage: str, error: NonFiniteError) -> None:
        """Say of a cell, in every row, that it is not finite; or raise the error."""
        for name in self.run.rows:
            self._mark(name, cell, stage, error)

    def adapt(self, system: System, task: Task, plan: AdaptationPlan, draw: int) -> tuple[Question, ...]:
        """As `System.adapt`; a batch that is not finite is saved in the run directory."""
        try:
            return system.adapt(task, plan, draw)
        except NonFiniteError as error:
            text = self.run.pinned.to_sealed_yaml()
            raise save_batch(error, self.run.folder, system.method, system.batcher, task.name, text) from error

    def _write(self, name: str, cell: Cell, rows: Sequence[Answered]) -> None:
        """The predictions of a row: of the test questions, the examples, these held out, and without content."""
        answered = [part for part in rows if not isinstance(part, NonFiniteError)]
        if len(answered) == len(rows):
            predictions = replace(self._of(name, cell, *answered), scale_prior=self._prior(name, cell))
            predictions.write(self.file(name, cell.where, cell.draw, cell.task))
            self.marker(name, cell.where, cell.draw, cell.task).unlink(missing_ok=True)
            return
        self._mark(name, cell, PREDICTING, next(part for part in rows if isinstance(part, NonFiniteError)))

    def _mark(self, name: str, cell: Cell, stage: str, error: NonFiniteError) -> None:
        if not self.run.record_non_finite:
            raise error
        learned = _guesses(self._examples(cell))
        held_out_rows = learned if cell.folds else ()
        asked = self._of(name, cell, _guesses(self.run.scored(cell.task)), learned, held_out_rows)
        why = without_folders(str(error), (*cell.task.train, *cell.task.test), self.run.folder)
        NotFinite(asked, stage, why).write(self.marker(name, cell.where, cell.draw, cell.task))
        self.file(name, cell.where, cell.draw, cell.task).unlink(missing_ok=True)

    def _of(
        self,
        name: str,
        cell: Cell,
        rows: tuple[Prediction, ...],
        learned: tuple[Prediction, ...],
        held_out_rows: tuple[Prediction, ...],
        content_free_rows: tuple[Prediction, ...] = (),
    ) -> Predictions:
        return Predictions(
            system=name,
            task=cell.task.name,
            seed=self.run.seed,
            draw=cell.draw,
            examples_consumed=cell.examples,
            rows=rows,
            adaptation_rows=learned,
            label_counts=_label_counts(cell.task, self._examples(cell)),
            held_out_rows=held_out_rows,
            adapted=cell.where != BEFORE,
            content_free_rows=content_free_rows,
        )

    def _examples(self, cell: Cell) -> tuple[Question, ...]:
        return examples_of(cell.task, cell.plan, cell.draw)

    def _content_free(self, task: Task) -> tuple[Question, ...]:
        """Questions without content, where they are asked for and the choices are always the same."""
        labels = task.fixed_labels if self.run.config.adaptation.content_free else None
        return () if labels is None else tuple(without_content(labels, text) for text in CONTENT_FREE)

    def _predict(
        self,
        system: System,
        coordinates: Coordinates,
        questions: tuple[Question, ...],
        examples: tuple[Question, ...],
    ) -> list[Answered]:
        """Predictions by each row of the system: drawn and, where it has stds, by the mean weights."""
        if self.run.config.adaptation.in_context:
            questions = tuple(system.batcher.encoder.with_examples(q, examples) for q in questions)
        drawn = self.run.prediction
        kinds = [drawn, PredictionPlan("mean", 1, drawn.batch_tokens)][: len(self.run.rows)]
        return [self._answered(system, questions, kind, coordinates) for kind in kinds]

    def _answered(
        self, system: System, questions: tuple[Question, ...], kind: PredictionPlan, coordinates: Coordinates
    ) -> Answered:
        try:
            rows = system.predict(questions, kind, coordinates)
        except NonFiniteError as error:
            if not self.run.record_non_finite:
                raise
            return error
        if not self.run.config.adaptation.lengths:
            return rows
        encoded = system.batcher.encode(questions)
        return tuple(replace(row, lengths=each.lengths_in_tokens) for row, each in zip(rows, encoded, strict=True))

    def _held_out(self, system: System, cell: Cell, predict: "partial[list[Answered]]") -> list[Answered]:
        """Predictions of the examples by folds; nothing where nothing is learned that they could be held out of."""
        if not cell.folds:
            return []
        return held_out(
            lambda part, of: self.adapt(system, part, of, cell.draw),
            predict,
            cell.task,
            self._examples(cell),
            cell.plan,
            cell.folds,
        )


def _guesses(questions: Iterable[Question]) -> tuple[Prediction, ...]:
    """The questions with every choice equally probable."""
    return tuple(
        Prediction(q.id, -1 if q.answer is None else q.answer, (1 / len(q.choices),) * len(q.choices))
        for q in questions
    )


def _label_counts(task: Task, examples: tuple[Question, ...]) -> tuple[int, ...] | None:
    if task.fixed_labels is None:
        return None
    return tuple(sum(q.answer == k for q in examples) for k in range(len(task.fixed_labels)))
