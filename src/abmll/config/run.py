"""The configuration of a run and of a comparison: YAML in and out, dotted overrides, a seal on what a run wrote."""

import difflib
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from abmll.config.recipes import find_recipe, nearest_recipes
from abmll.config.sections import (
    AdaptationConfig,
    AdapterConfig,
    ComputeConfig,
    LikelihoodConfig,
    MethodConfig,
    PosteriorConfig,
    Section,
    SharedPath,
    TasksConfig,
    TrackingConfig,
    TrainingConfig,
)
from abmll.errors import AbmllError
from abmll.files import check_regular, is_device, seal

SEAL = "# sha256 of what follows: "
MOST_BYTES = 16 << 20  # of a configuration file
MOST_VALUES = 100_000  # of a configuration file
MOST_SHOWN = 200  # characters of a wrong value in a message
NAMED: Mapping[str, type[BaseModel]] = {"method": MethodConfig, "posterior": PosteriorConfig}
"""Sections whose settings are those of what they name."""
SYSTEM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")


class ModelConfig(Section):
    """Which base model: a hub id, a folder, a GGUF file or a packaged name in `source`; or a random `shape`.

    With `attention: eager` a seed trained twice on a GPU ended at the same bits, with `sdpa` not (docs/evidence.md).

    `shards`: under `torchrun`, into how many parts the layers are spread over processes, for a base that no one device
    holds; 1 lets each process hold the whole base, and `auto` does so where it fits (docs/scale.md). Commands that are
    one process hold the whole base in any case.
    """

    source: SharedPath | None = None
    shape: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    attention: Literal["sdpa", "eager"] = "sdpa"
    quantisation: Literal["4bit", "8bit"] | None = None
    shards: Annotated[int, Field(ge=1)] | Literal["auto"] = 1

    @model_validator(mode="after")
    def _spreads_what_can_be(self) -> "ModelConfig":
        if self.shards in (1, "auto"):
            return self
        if self.quantisation is not None:
            raise ValueError(
                f"shards={self.shards} with quantisation={self.quantisation}: layers that bitsandbytes has packed "
                "cannot be spread over processes; leave one of the two out"
            )
        if ":" in self.device:
            raise ValueError(f"shards={self.shards} with device={self.device}: each process takes its own; use auto")
        return self

    @model_validator(mode="after")
    def _one_of_source_and_shape(self) -> "ModelConfig":
        if (self.source is None) == (self.shape is None):
            raise ValueError(
                "give model.source (a hub id, folder, GGUF file or packaged name) or model.shape, not both"
            )
        return self


class RunConfig(Section):
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
    posterior: PosteriorConfig = PosteriorConfig()
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
        reference: the system that the paired tests compare against; not given: `pretrained`, or else `structured`.
        curve: points of the learning curve, evenly spaced over training, start and end included.
        metrics: names of registered metrics (docs/add-a-metric.md) that the tables show beside the library's own.
    """

    systems: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    reference: str = ""
    curve: int = Field(2, ge=1)
    metrics: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _reference_is_pretrained(cls, values: Any) -> Any:
        given = not isinstance(values, dict) or values.get("reference") is not None
        if given or not isinstance(values.get("systems"), dict):
            return values
        return {**values, "reference": "pretrained" if "pretrained" in values["systems"] else "structured"}

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

    Args:
        kind: `RunConfig`, or `CompareConfig`.
        path: the file, or the name of a recipe that comes with the package: `Path("quickstart")`.
        overrides: values to set.

    Raises:
        AbmllError: the file is missing, no YAML, or a run wrote it and it is no longer what was written; an override
            has no `=`; or a value is wrong: every fault is named with its setting, and an unknown key with the nearest
            known ones.
    """
    path = find_recipe(path)
    try:
        check_regular(path)
        if path.stat().st_size > MOST_BYTES:
            raise AbmllError(f"{path}: {path.stat().st_size:,} bytes are too many for a configuration")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        hint = nearest_recipes(path) if isinstance(error, FileNotFoundError) else ""
        raise AbmllError(f"{path}: cannot be read ({error.strerror}){hint}") from error
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
    names = ("method.name=", "posterior.name=")
    names_first = sorted(texts, key=lambda text: not text.startswith(names))  # a name drops other settings
    return functools.reduce(merge, map(parse_override, names_first), {})


def _read_yaml(text: str, complaint: str) -> Any:
    """YAML without code, of a size that can be copied and printed.

    PyYAML lets other errors than its own through: `2024-13-45`, `!!bool x`, `!!timestamp x`, ten thousand brackets.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _check_nodes(node)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
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
    """`over` laid on `base`, mapping by mapping; a method or posterior of another name drops the base's settings.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if key in NAMED and isinstance(value, dict) and isinstance(old, dict):
            name = old.get("name", NAMED[key].model_fields["name"].default)
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
