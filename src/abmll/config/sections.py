"""The sections of a run configuration but `model`, which has to name one base: frozen pydantic models.

Paths below the home folder are kept as `~/...`: a configuration is written into every run, and a run is for sharing.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from abmll.errors import AbmllError
from abmll.files import without_home

SharedPath = Annotated[str, AfterValidator(without_home)]
"""A path as it is written into files that are shared: `~/...` below the home folder."""
LeakCheck = Literal["error", "drop", "warn", "off"]


class Section(BaseModel):
    """Refuses settings that it does not know, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdapterConfig(Section):
    """LoRA's own settings, the same for every system; those of stds belong to the method.

    `start` is the folder of an ordinary PEFT LoRA whose weights the shared means start from.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] | str = ("q_proj", "v_proj")
    start: SharedPath | None = None


class LikelihoodConfig(Section):
    """How choices are read from the model (docs/method.md, section 5).

    `cut`: which part of a context is left out where a question is longer than `max_tokens`; on rows of a user's own it
    is the middle by default. `share_prefix`: the prompt is computed once for all choices of a question. `share_labels`:
    so are the tokens that several choices begin with; `auto` where there are more than 26. Neither changes a score
    beyond rounding.

    `pieces`: a context that is too long is cut with 1; with more, questions are answered by so many pieces of it at
    most, whose log-probabilities are averaged. Gradient steps see it cut in any case.

    `premise`: a text that stands where a question's own would, such as "" or "N/A"; what each choice scores after the
    prompt with it is subtracted (domain-conditional PMI); null subtracts nothing.
    `kind: auto` is for a base model that nothing was trained on: of letters and cloze, the labelled rows that it is
    adapted to decide. `kind: channel` puts each choice before the question's text and scores the text.
    """

    kind: Literal["cloze", "letter", "channel", "auto"] = "cloze"
    normalisation: Literal["sum", "token", "byte"] = "token"
    premise: str | None = None
    template: str = "plain"
    temperature: float = Field(1.0, gt=0)
    learn_temperature: bool = False
    max_tokens: int = Field(512, ge=8)
    cut: Literal["start", "middle", "end"] = "start"
    pieces: int = Field(1, ge=1)
    share_prefix: bool = True
    share_labels: Literal["auto"] | bool = "auto"

    @property
    def decided(self) -> Literal["cloze", "letter", "channel"]:
        """The kind.

        Raises:
            AbmllError: it is `auto`, and nothing has decided.
        """
        if self.kind == "auto":
            raise AbmllError(
                "likelihood.kind=auto: labelled rows decide, in `abmll adapt BASE ROWS --save NAME` and in Classifier; "
                "give `letter`, `cloze` or `channel` here"
            )
        return self.kind


class MethodConfig(BaseModel):
    """A method's name, preset and any of its settings; the method itself knows and checks the settings."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = "abmll"
    preset: str = "default"

    def settings(self) -> dict[str, Any]:
        """What was given besides name and preset."""
        return dict(self.model_extra or {})


class PosteriorConfig(BaseModel):
    """What is made of phi after adaptation for answers to draw from, by name and preset, and any of its settings.

    For methods without stds: `none`, `laplace`, `tfb`, `swag`, `ensemble`, `ivon` or `blob` (docs/rivals.md).
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = "none"
    preset: str = "default"

    def settings(self) -> dict[str, Any]:
        """What was given besides name and preset."""
        return dict(self.model_extra or {})


class TaskSource(Section):
    """Where tasks come from: "builtin", "builtin:held-out", "hub:NAME", a folder or a file; `names` picks some.

    `merge_choices` drops a choice that a row gives twice, instead of refusing the row. `on_bad_row` says whether a bad
    row refuses everything, or is left out, counted and reported.
    """

    source: SharedPath
    names: tuple[str, ...] | None = None
    merge_choices: bool = False
    on_bad_row: Literal["error", "skip"] = "error"


class TasksConfig(Section):
    """Tasks to meta-train on, to choose by (validation), and to report (unseen).

    `leak_check` is what happens to rows that play two of these roles: `error` refuses them, `drop` leaves out the one
    that is learned from, `warn` names them, `off` does not look.
    """

    train: TaskSource = TaskSource(source="builtin")
    validation: TaskSource | None = None
    unseen: TaskSource | None = None
    sampling: Literal["uniform", "proportional"] = "uniform"
    leak_check: LeakCheck = "error"

    @field_validator("leak_check", mode="before")
    @classmethod
    def _off_is_false_in_yaml(cls, value: Any) -> Any:
        return "off" if value is False else value


class TrainingConfig(Section):
    """The outer loop.

    Every `validate_every` meta-iterations the validation tasks are adapted to, and the weights with the lowest mean
    NLL are kept; training stops after `patience` times without a lower one. `validate_by` says which NLL:
    `nll_posterior`, the primary score of every table, at the posterior temperature of each half of a task's rows given
    the other half; `nll`, as it is stated, by which a guess can beat good weights that are too sure; `nll_scaled`, at
    the temperature that suits the very rows best.

    `on_non_finite` says whether a meta-iteration with a loss or gradient that is not finite stops the run, or is left
    out and counted; more than `most_skipped` of them stop the run in any case.
    """

    iterations: int = Field(100, ge=0)
    meta_batch: int = Field(1, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(50, ge=1)
    log_stds_every: int = Field(10, ge=1)
    validate_every: int | None = Field(None, ge=1)
    validate_by: Literal["nll_posterior", "nll", "nll_scaled"] = "nll_posterior"
    patience: int = Field(3, ge=1)
    on_non_finite: Literal["stop", "skip"] = "stop"
    most_skipped: int = Field(10, ge=0)


class AdaptationConfig(Section):
    """Adapting to an unseen task, and predicting.

    `examples`: train rows that are adapted to, drawn; null takes all of a task's, as fine-tuning on a whole set does.
    `folds`: each example is predicted also after adapting to those of the other folds, so that a temperature can be
    fitted to examples that were not learned, by the weights at the end of training; 0 leaves that out. `meta_rows`:
    after training each training task is adapted to as an unseen one is, and so many of its other rows are answered,
    from which a prior of that temperature is learned; 0 leaves that out. `in_context`: as many examples as fit in
    `likelihood.max_tokens` are put in front of each question; with `steps` 0 nothing is learned then. `schedule`: the
    rates of a method are constant over the steps of an adaptation, or fall to 0 after the last one.
    `content_free`: tasks with fixed labels are also asked questions without content, for contextual calibration.
    `lengths`: the numbers of tokens of each question and its choices are written beside its answer, for Thermometer.
    `sampler`: predictions average over `samples` draws of the weights, or of what they do to activations; `mean`
    answers once, by the mean weights, as rows of a user's own are answered by default.
    """

    examples: int | None = Field(20, ge=0)
    steps: int = Field(10, ge=0)
    batch_size: int = Field(2, ge=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    draws: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    test_questions: int | None = Field(None, ge=1)
    sampler: Literal["weight", "activation", "mean"] = "weight"
    samples: int = Field(10, ge=1)
    batch_tokens: int = Field(4096, ge=1)
    folds: int = Field(0, ge=0)
    meta_rows: int = Field(0, ge=0)
    in_context: bool = False
    content_free: bool = False
    lengths: bool = False

    @field_validator("folds")
    @classmethod
    def _none_or_some(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold leaves nothing to adapt to; give 0, or 2 or more")
        return value


class ComputeConfig(Section):
    """How it is computed, which changes no result beyond rounding.

    `kernels`: the fastest there is (`auto`): fused Triton kernels on CUDA, oneDNN's products on CPUs of AMD with
    AVX-512, in float32; or one of them wherever it runs. `packed`: oneDNN keeps two copies of each frozen weight in its
    own layout; `auto` where they take at most 2 GiB in all. `capture`: on CUDA, steps are captured as graphs per batch
    shape and replayed, `captured` of them at most; gradient steps pad to `least_width` tokens or more, so that a small
    model has fewer shapes to capture.
    """

    kernels: Literal["auto", "eager", "triton", "onednn"] = "auto"
    packed: Literal["auto"] | bool = "auto"
    capture: bool = True
    captured: int = Field(64, ge=1)
    least_width: int = Field(1, ge=1)


class TrackingConfig(Section):
    """Copies of the journal's numbers for other programs; changes nothing that is computed. Off by default.

    `tracker`: a name, or several. `project`: by which it groups runs (TensorBoard has none: it shows folders).
    """

    tracker: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    project: str = Field("abmll", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)

    @field_validator("tracker", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value or ()
