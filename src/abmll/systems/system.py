"""System: a base model with adapters and a method over them, which adapts to a task and answers questions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from abmll.adapters.attach import detach
from abmll.adapters.facts import BaseFacts, LikelihoodFacts, Slot, StoredAdapter
from abmll.adapters.folder import write_adapter
from abmll.adapters.stored import Maker, take_adapter
from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.files import without_home, write_text
from abmll.likelihood import ChoiceLikelihood
from abmll.methods.base import Method
from abmll.methods.noise import POSTERIOR, Coordinates, adaptation_coordinates
from abmll.metrics.predictions import Prediction
from abmll.models import LanguageModel
from abmll.process.environment import version
from abmll.process.timer import Timer
from abmll.question import Question, Task
from abmll.systems.folds import Fold
from abmll.systems.plans import AdaptationPlan, PredictionPlan, adaptation_plan, plan_for, prediction_plan, resolve
from abmll.systems.posteriors.base import Adaptation, Posterior
from abmll.systems.predict import (
    Answer,
    Drawn,
    averaged,
    draw_by_batch,
    is_drawing,
    leave_one_out,
    steps_from_theta,
    summarised,
)
from abmll.tasks.episodes import adaptation_batches
from abmll.training.batcher import Batcher
from abmll.training.finite import check_adapted
from abmll.training.graphs import Graphs
from abmll.training.inner import Announced
from abmll.training.optimizers import GroupOptimizer, Optimizers
from abmll.training.train import Learner

CONFIG_FILE = "config.yaml"


@dataclass
class System:
    """One system on one base model: what `abmll.build_system` makes, `abmll.train` trains, and a user asks.

    There are two sets of weights on the base model: theta, shared by all tasks, which meta-training learns, and phi, of
    one task, which `adapt` makes from theta and `predict`, `answer` and `save` use.

    Attributes:
        language_model: the base model, whose layers hold the adapters until `close`.
        method: theta, phi, and the losses that move them.
        likelihood: reads choices from the model.
        batcher: encodes and pads questions; its `examples` are those that phi was adapted to, where the method has
            demonstrations.
        alpha: LoRA's, of the scale alpha / rank.
        graphs: captured steps, on CUDA.
        adapting: steps of adaptation; those of training, unless their moments go on from task to task.
        training: steps of meta-training.
        config: what it was built from, or renewed to.
        posterior: made of phi after each adaptation, for answers to draw from; None: answers go by the method alone.
    """

    language_model: LanguageModel
    method: Method
    likelihood: ChoiceLikelihood
    batcher: Batcher
    alpha: float
    graphs: Graphs
    adapting: GroupOptimizer
    training: Optimizers
    config: RunConfig
    posterior: Posterior | None = None

    @property
    def learner(self) -> Learner:
        """What `meta_train` trains."""
        return Learner(self.method, self.batcher, self.graphs, self.training)

    def adapt(
        self,
        task: Task,
        plan: AdaptationPlan | None = None,
        draw: int = 0,
        listener: Callable[[int], None] = lambda done: None,
    ) -> tuple[Question, ...]:
        """Make phi from theta and adapt it to a task, by gradient steps on its train rows.

        Args:
            task: its train rows are learned from, its test rows are not looked at.
            plan: how many rows are drawn, and the steps on them; None: all of them, by the configuration's
                `adaptation`, in as many steps as one pass over them takes at least.
            draw: number of the draw of rows, where a plan takes some.
            listener: hears of the number of steps done.

        Returns:
            The rows that were learned from.

        Raises:
            AbmllError: the task has too few rows, or one that does not fit the model; names its file and line.
            NonFiniteError: a loss, a gradient or phi is not finite.
            Stopped: between two steps, if the process was asked to stop.
        """
        plan = plan_for(len(task.train), self._usual) if plan is None else plan
        examples, batches = adaptation_batches(
            task, examples=plan.examples, steps=plan.steps, batch_size=plan.batch_size, seed=plan.seed, draw=draw
        )
        if self.method.demonstrations:
            self.batcher = replace(self.batcher, examples=())
        self.batcher.encode(examples)  # what does not fit is said before anything moves
        asked = examples
        if self.method.demonstrations:
            asked, *batches = leave_one_out(self.batcher, [examples, *batches], examples)
        adaptation = Adaptation(asked, tuple(batches), adaptation_coordinates(plan.seed, draw), plan.schedule)
        with self._heard(len(batches)):
            steps_from_theta(
                self.method,
                self.adapting,
                self.batcher,
                Announced(batches, listener),
                adaptation.coordinates,
                self.graphs,
                plan.schedule,
            )
        check_adapted(task.name, self.method.adapters)
        if self.method.demonstrations:
            self.batcher = replace(self.batcher, examples=examples)
        if self.posterior is not None and batches:
            self.posterior.fit(adaptation)
            self.posterior.fitted = True
        return examples

    def predict(
        self,
        questions: Sequence[Question],
        plan: PredictionPlan | None = None,
        coordinates: Coordinates = POSTERIOR,
    ) -> tuple[Prediction, ...]:
        """Choice probabilities under phi, averaged over posterior draws, beside the right answers: what scores take.

        Args:
            questions: any number; each prediction is independent of the others.
            plan: sampler and number of draws; None: those of the configuration's `adaptation`.
            coordinates: of the draws' noise; the same ones give the same weights for every question.

        Raises:
            AbmllError: a question does not fit the model; names its file and line.
            NonFiniteError: a probability is NaN or infinite; names the rows and the dtype.
        """
        return averaged(questions, *self._drawn(questions, plan, coordinates))

    def answer(self, questions: Sequence[Question], plan: PredictionPlan | None = None) -> tuple[Answer, ...]:
        """Answer questions by phi as it is now, and say how far the posterior draws disagree.

        The draws are the numbers 0 to S - 1, which `abmll export --draw` merges too.

        Args:
            questions: any number, with or without a right answer; an answer does not depend on the others.
            plan: sampler and number of draws S; None: those of the configuration's `adaptation`.

        Raises:
            AbmllError: a question does not fit the model; names its file and line.
            NonFiniteError: a probability is NaN or infinite; names the rows and the dtype.
        """
        return summarised(questions, *self._drawn(questions, plan, POSTERIOR))

    def answer_by_folds(
        self,
        questions: Sequence[Question],
        folds: Sequence[Fold],
        plan: PredictionPlan | None = None,
        adaptation: Callable[[int], AdaptationPlan | None] = lambda rows: None,
        listener: Callable[[float], None] = lambda done: None,
        timer: Timer | None = None,
    ) -> tuple[Answer, ...]:
        """Answer labelled questions by cross-validation: each by phi as it is after adapting to the other folds alone.

        Args:
            questions: with their right answers, which nothing but the folds that they are not in is fitted to.
            folds: of `abmll.systems.folds.deal`; every question is answered in one. Fitted to none, theta answers.
            plan: as for `answer`.
            adaptation: number of questions fitted to -> how; None: as `adapt` does.
            listener: hears of the number of folds done, a step of adapting being a part of one.
            timer: counts the seconds of answering as `predict_seconds`, those of adapting as `adapt_seconds`.

        Raises:
            AbmllError, NonFiniteError, Stopped: as `adapt` and `answer`.
        """
        timer, out = Timer() if timer is None else timer, dict[int, Answer]()
        for number, fold in enumerate(folds):
            fitted = tuple(questions[i] for i in fold.fitted)
            plan_of_fold = adaptation(len(fitted)) or plan_for(len(fitted), self._usual)
            told = _share_of(listener, number, plan_of_fold.steps + 1)
            with timer("adapt_seconds"):
                self.adapt(Task(f"fold {number}", fitted), plan_of_fold, 0, told)
            with timer("predict_seconds"):
                answers = self.answer([questions[i] for i in fold.answered], plan)
            out |= zip(fold.answered, answers, strict=True)
            listener(number + 1.0)
        return tuple(out[i] for i in range(len(questions)))

    def stored(self, slot: Slot = "task") -> StoredAdapter:
        """A copy of phi (`task`) or theta (`shared`), with everything that is needed to use it again."""
        text = self.config.likelihood
        return take_adapter(
            self.method.adapters,
            slot,
            alpha=self.alpha,
            base=base_facts(self.language_model),
            maker=Maker(
                self.config.method.name,
                self.method.settings.model_dump(mode="json"),
                f"abmll {version('abmll') or '(a checkout)'}",
                {name: tuple(numbers.tolist()) for name, numbers in self.method.learned.items()},
            ),
            likelihood=LikelihoodFacts(
                kind=text.decided,
                normalisation=text.normalisation,
                template=text.template,
                temperature=float(self.likelihood.log_temperature.detach().exp()),
                premise=text.premise,
            ),
        )

    def save(self, folder: Path | str, slot: Slot = "task") -> None:
        """Write phi, or theta, and the configuration: `abmll.load_system` gives it back, stock PEFT reads its mean.

        Every setting of the method is written, also those that nobody gave: a later version may have another default.

        Args:
            folder: replaced if it is there; whole or not at all.
            slot: `task` for phi, as it was adapted last; `shared` for theta.

        Raises:
            AbmllError: phi alone is not what answers (see `check_phi_is_all`); nothing is written then.
            NonFiniteError: a weight is NaN or infinite; nothing is written then.
            OSError: the disk is full, ...; `folder` is then as it was.
        """
        if slot == "task":
            self.check_phi_is_all("System.save", "save it as a task of a run: abmll.save_posterior")
        text = resolve(self.config).pinned.to_sealed_yaml()
        write_adapter(self.stored(slot), folder, lambda beside: write_text(beside / CONFIG_FILE, text))

    def check_phi_is_all(self, what: str, instead: str) -> None:
        """Refuse what takes phi for all that answers depend on, where they depend on more.

        Args:
            what: is refused.
            instead: what to do.

        Raises:
            AbmllError: answers go by labelled rows in front of each question, or by a posterior, too.
        """
        if self.posterior is not None:
            raise AbmllError(
                f"{what} keeps the adapted weights alone, but with posterior.name={self.config.posterior.name} answers "
                f"draw from more; {instead}"
            )
        if self.method.demonstrations:
            raise AbmllError(
                f"{what} keeps the adapted weights alone, but with method.demonstrations={self.method.demonstrations} "
                f"labelled rows stand in front of each question, too; {instead}"
            )

    def close(self) -> None:
        """Take the adapters off the base model, and give the memory of captured steps back."""
        detach(self.language_model.model, self.method.adapters)
        self.graphs.close()

    @contextmanager
    def _heard(self, steps: int) -> Iterator[None]:
        """The posterior hears of each inner step that is taken inside."""
        if self.posterior is None:
            yield
            return
        self.posterior.fitted = False
        self.posterior.begin(steps)
        self.adapting.after_step = self.posterior.after_step
        try:
            yield
        finally:
            self.adapting.after_step = None

    def _drawn(
        self, questions: Sequence[Question], plan: PredictionPlan | None, coordinates: Coordinates
    ) -> tuple[Drawn, bool]:
        """Draws of what the questions' choices have, and whether they differ: by the posterior, or by the method."""
        plan = self._drawing if plan is None else plan
        if self.posterior is not None and self.posterior.fitted and plan.sampler != "mean":
            questions = list(map(self.batcher.shown, questions))  # whose own batcher has no examples
            return self.posterior.draw_by_batch(questions, plan, coordinates), True
        parts = (self.method, self.likelihood, self.batcher)
        return draw_by_batch(*parts, questions, plan, coordinates, self.graphs), is_drawing(self.method, plan)

    @property
    def _usual(self) -> AdaptationPlan:
        return adaptation_plan(self.config)

    @property
    def _drawing(self) -> PredictionPlan:
        return prediction_plan(self.config)


def _share_of(listener: Callable[[float], None], done: int, parts: int) -> Callable[[int], None]:
    """Tells `listener` of parts of the next fold; its last part is that of the answers."""
    return lambda part: listener(done + part / parts)


def base_facts(base: LanguageModel) -> BaseFacts:
    """What a stored adapter keeps of the model it belongs to."""
    return BaseFacts(
        name=without_home(base.name),
        revision=base.revision,
        dtype=str(base.dtype).removeprefix("torch."),
        fingerprint=base.fingerprint,
        architecture=base.architecture,
        tokenizer_hash=base.tokenizer_hash,
    )
