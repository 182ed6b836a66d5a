"""The run configuration: frozen pydantic models, YAML in and out, dotted overrides, a content hash.

Only `systems` and what is built on it read it; everything else takes plain arguments. Paths below the home folder are
kept as `~/...`: a configuration is written into every run, and a run is for sharing.
"""

import difflib
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from abmll.errors import AbmllError
from abmll.files import check_regular, is_device, seal, without_home

SEAL = "# sha256 of what follows: "
MOST_BYTES = 16 << 20  # of a configuration file
MOST_VALUES = 100_000  # of a configuration file
MOST_SHOWN = 200  # characters of a wrong value in a message
SharedPath = Annotated[str, AfterValidator(without_home)]
"""A path as it is written into files that are shared: `~/...` below the home folder."""
LeakCheck = Literal["error", "drop", "warn", "off"]
SYSTEM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Section):
    """Which base model: a hub id, a folder, a GGUF file or a packaged name in `source`; or a random `shape`.

    With `attention: eager` a seed trained twice on a GPU ended at the same bits, with `sdpa` not (docs/evidence.md).
    """

    source: SharedPath | None = None
    shape: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    attention: Literal["sdpa", "eager"] = "sdpa"
    quantisation: Literal["4bit", "8bit"] | None = None

    @model_validator(mode="after")
    def _one_of_source_and_shape(self) -> "ModelConfig":
        if (self.source is None) == (self.shape is None):
            raise ValueError(
                "give model.source (a hub id, folder, GGUF file or packaged name) or model.shape, not both"
            )
        return self


class AdapterConfig(_Section):
    """LoRA's own settings, the same for every system; those of stds belong to the method.

    `start` is the folder of an ordinary PEFT LoRA whose weights the shared means start from.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] | str = ("q_proj", "v_proj")
    start: SharedPath | None = None


class LikelihoodConfig(_Section):
    """How choices are read from the model (docs/method.md, section 5)."""

    kind: Literal["cloze", "letter"] = "cloze"
    normalisation: Literal["sum", "token", "byte"] = "token"
    template: str = "plain"
    temperature: float = Field(1.0, gt=0)
    learn_temperature: bool = False
    max_tokens: int = Field(512, ge=8)
    share_prefix: bool = True


class MethodConfig(BaseModel):
    """A method's name, preset and any of its settings; the method itself knows and checks the settings."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = "abmll"
    preset: str = "default"

    def settings(self) -> dict[str, Any]:
        """What was given besides name and preset."""
        return dict(self.model_extra or {})


class TaskSource(_Section):
    """Where tasks come from: "builtin", "builtin:held-out", "hub:NAME", a folder or a file; `names` picks some.

    `merge_choices` drops a choice that a row gives twice, instead of refusing the row. `on_bad_row` says whether a bad
    row refuses everything, or is left out, counted and reported.
    """

    source: SharedPath
    names: tuple[str, ...] | None = None
    merge_choices: bool = False
    on_bad_row: Literal["error", "skip"] = "error"


class TasksConfig(_Section):
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


class TrainingConfig(_Section):
    """The outer loop.

    Every `validate_every` meta-iterations the validation tasks are adapted to, and the weights with the lowest mean
    NLL are kept; training stops after `patience` times without a lower one. `validate_by: nll_scaled` takes the NLL
    at the temperature that suits each task best: by the plain one a guess can beat good weights that are too sure.

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
    validate_by: Literal["nll", "nll_scaled"] = "nll"
    patience: int = Field(3, ge=1)
    on_non_finite: Literal["stop", "skip"] = "stop"
    most_skipped: int = Field(10, ge=0)


class AdaptationConfig(_Section):
    """Adapting to an unseen task, and predicting.

    `folds`: each example is predicted also after adapting to those of the other folds, so that a temperature can be
    fitted to examples that were not learned; 0 leaves that out. `in_context`: as many examples as fit in
    `likelihood.max_tokens` are put in front of each question; with `steps` 0 nothing is learned then.
    """

    examples: int = Field(20, ge=0)
    steps: int = Field(10, ge=0)
    batch_size: int = Field(2, ge=1)
    draws: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    test_questions: int | None = Field(None, ge=1)
    sampler: Literal["weight", "activation"] = "weight"
    samples: int = Field(10, ge=1)
    batch_tokens: int = Field(4096, ge=1)
    folds: int = Field(0, ge=0)
    in_context: bool = False

    @field_validator("folds")
    @classmethod
    def _none_or_some(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold leaves nothing to adapt to; give 0, or 2 or more")
        return value


class ComputeConfig(_Section):
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


class TrackingConfig(_Section):
    """Copies of the journal's numbers for other programs; changes nothing that is computed. Off by default.

    `tracker`: a name, or several. `project`: by which it groups runs (TensorBoard has none: it shows folders).
    """

    tracker: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    project: str = Field("abmll", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)

    @field_validator("tracker", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value or ()


class RunConfig(_Section):
    """Everything that one run is made of."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    note: str = ""
    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    likelihood: LikelihoodConfig = LikelihoodConfig()
    method: MethodConfig = MethodConfig()
    tasks: TasksConfig = TasksConfig()
    training: TrainingConfig = TrainingConfig()
    adaptation: AdaptationConfig = AdaptationConfig()
    engine: ComputeConfig = ComputeConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if value.endswith(".") or is_device(value):
            raise ValueError("ends in a dot or is a device's name such as CON, so it cannot name a folder everywhere")
        return value

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def to_sealed_yaml(self) -> str:
        """`to_yaml` after a first line by which `load_config` knows whether it is still what was written."""
        text = self.to_yaml()
        return f"{SEAL}{seal(text)}\n{text}"


class CompareConfig(RunConfig):
    """Systems x seeds x adaptation draws over one base configuration.

    Attributes:
        systems: name -> what differs from the base, as a part of a run configuration. Model, tasks, draws and scored
            questions are those of the comparison (`abmll.runs.overrides.SHARED`): another value is refused.
        seeds: training seeds.
        reference: the system that the paired tests compare against.
        curve: points of the learning curve, evenly spaced over training, start and end included.
        metrics: names of registered metrics (docs/add-a-metric.md) that the tables show beside the library's own.
    """

    systems: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    reference: str = "structured"
    curve: int = Field(2, ge=1)
    metrics: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_known(self) -> "CompareConfig":
        if self.reference not in self.systems:
            raise ValueError(f"reference {self.reference!r} is none of the systems ({', '.join(self.systems)})")
        for name in self.systems:
            if name in ("uniform", "label_frequency") or not SYSTEM_NAME.fullmatch(name) or is_device(name):
                raise ValueError(
                    f"{name!r} cannot name a system: up to 80 of a-z, A-Z, 0-9, - and _, the first a letter or digit, "
                    "and not a baseline's name, nor a device's such as CON"
                )
        folded = [name.casefold() for name in self.systems]
        if alike := [name for name in self.systems if folded.count(name.casefold()) > 1]:
            raise ValueError(f"systems {', '.join(alike)} differ in case alone, and would share a folder on some disks")
        return self

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if twice := sorted({seed for seed in value if value.count(seed) > 1}):
            raise ValueError(f"{', '.join(map(str, twice))} is given twice: the same training, and no second opinion")
        if negative := [seed for seed in value if seed < 0]:
            raise ValueError(f"{negative[0]} is below 0")
        return value

    def base(self) -> dict[str, Any]:
        """What every system begins with, as JSON values: all but what is of the comparison alone."""
        return self.model_dump(mode="json", exclude=set(CompareConfig.model_fields) - set(RunConfig.model_fields))

    def run(self, system: str, seed: int) -> RunConfig:
        """The configuration of one system and seed."""
        merged = merge(merge(self.base(), self.systems[system]), {"name": system, "training": {"seed": seed}})
        return check(RunConfig, merged, f"systems.{system}")


Config = TypeVar("Config", bound=RunConfig)


def load_config(kind: type[Config], path: Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """Read a YAML file, lay overrides on it (`a.b=value`, or what `parse_overrides` gives), and check the result.

    Raises:
        AbmllError: the file is missing, no YAML, or a run wrote it and it is no longer what was written; an override
            has no `=`; or a value is wrong: every fault is named with its setting, and an unknown key with the nearest
            known ones.
    """
    try:
        check_regular(path)
        if path.stat().st_size > MOST_BYTES:
            raise AbmllError(f"{path}: {path.stat().st_size:,} bytes are too many for a configuration")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AbmllError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise AbmllError(f"{path}: not UTF-8 text ({error})") from error
    _check_seal(path, text)
    values = _read_yaml(text, f"{path}: not valid YAML")
    if not isinstance(values, dict):
        raise AbmllError(f"{path}: expected sections such as `model:` and `method:`, found {type(values).__name__}")
    laid = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    return check(kind, merge(values, laid), str(path))


def _check_seal(path: Path, text: str) -> None:
    first, _, rest = text.partition("\n")
    if first.startswith(SEAL) and first.removeprefix(SEAL).strip() != seal(rest):
        raise AbmllError(
            f"{path}: damaged or edited since the run wrote it (its SHA-256 differs). Give a change as "
            "section.key=value instead; if you know what the file says, remove its first line"
        )


def parse_override(text: str) -> dict[str, Any]:
    """`method.inner_steps=3` as `{"method": {"inner_steps": 3}}`; the value is read as YAML."""
    setting, equals, value = text.partition("=")
    if not equals or not all(setting.split(".")):
        raise AbmllError(f"override {text!r} is not of the form section.key=value")
    nested = _read_yaml(value, f"override {text!r}: the value is not valid YAML")
    for key in reversed(setting.split(".")):
        nested = {key: nested}
    return nested


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """The values of several overrides; a later one is laid on an earlier.

    >>> parse_overrides(["training.seed=4", "method.name=lora", "training.seed=5"])
    {'method': {'name': 'lora'}, 'training': {'seed': 5}}
    """
    names_first = sorted(texts, key=lambda text: not text.startswith("method.name="))  # a name drops other settings
    return functools.reduce(merge, map(parse_override, names_first), {})


def _read_yaml(text: str, complaint: str) -> Any:
    """YAML without code, of a size that can be copied and printed.

    PyYAML lets other errors than its own through: `2024-13-45`, `!!bool x`, `!!timestamp x`, ten thousand brackets.
    """
    try:
        _check_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise AbmllError(f"{complaint} ({_shown(' '.join(str(error).split()))})") from error


def _check_nodes(node: yaml.Node | None) -> None:
    """Refuse what PyYAML takes: a key that is given twice (the last one would win), and texts that are none.

    Aliases can make 10^9 values, or endlessly many, of ten lines.
    """
    left, count = [node], 0
    while left:
        node = left.pop()
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            left += itertools.chain(*node.value)
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.ScalarNode) and ("\0" in node.value or re.search("[\ud800-\udfff]", node.value)):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: NUL, or half of a surrogate pair, is no character")
        count += 1
        if count > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values, aliases written out")


def _check_keys(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in seen:
                raise yaml.YAMLError(f"line {line}: {key.value!r} is given twice, first in line {seen[key.value]}")
            seen[key.value] = line


def _shown(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; a method of another name drops the base method's settings.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if key == "method" and isinstance(value, dict) and isinstance(old, dict):
            name = old.get("name", MethodConfig.model_fields["name"].default)
            old = old if value.get("name", name) == name else {}
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def check(kind: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Validate nested values as a configuration; AbmllError names every fault at once."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise AbmllError("\n".join(_fault(kind, where, fault) for fault in error.errors())) from error


def _fault(kind: type[BaseModel], where: str, fault: Any) -> str:
    setting = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _fields_at(kind, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        return f"{where}: {setting} is not a setting.{hint} Known here: {', '.join(known)}"
    value = "" if fault["type"] in ("missing", "value_error") else f", found {_shown(repr(fault['input']))}"
    return f"{where}: {setting or 'the configuration'}: {fault['msg'].removeprefix('Value error, ')}{value}"


def _fields_at(kind: type[BaseModel], section: Sequence[Any]) -> list[str]:
    for part in section:
        field = kind.model_fields.get(str(part))
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        kind = models[0]
    return list(kind.model_fields)
