"""What a run was made from: configuration, data, base model; and whether a run that goes on still has the same."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.config import MethodConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json, write_text
from abmll.models import LanguageModel
from abmll.question import Task
from abmll.runs.overrides import fields_of
from abmll.systems.plans import ResolvedRun, resolve

log = logging.getLogger(__name__)

PROVENANCE = "origin.json"
UNCOMPARED = ("name", "note", "tracking.", "adaptation.meta_rows", "model.shards")
"""Fields that change nothing that is computed; what `adaptation.meta_rows` gives is learned again by itself."""
CHANGED_WITH_NOTE = (
    *("training.checkpoint_every", "training.log_stds_every", "training.on_non_finite", "training.most_skipped"),
    *("engine.", "model.device", "tasks.unseen"),
)
"""Fields (or their beginnings) that may change with a note: they change no result, beyond rounding."""
EARLIER_DEFAULTS: dict[str, dict[str, Any]] = {"structured": {"inner_optimizer_state": "fresh"}}
"""Settings of methods that had another default when the first runs did not yet write their defaults down."""
MOST_ADVISED = 4


@dataclass(frozen=True)
class Provenance:
    """What was computed on, as SHA-256.

    Attributes:
        data: name of a training or validation task -> all its rows.
        tokenizer, model: of the base model.
    """

    data: Mapping[str, str]
    tokenizer: str
    model: str


def provenance_of(base: LanguageModel, train: Sequence[Task], validation: Sequence[Task]) -> Provenance:
    """The provenance of a run: cheap, since a sample stands for the model's weights."""
    return Provenance({t.name: task_hash(t) for t in (*train, *validation)}, base.tokenizer_hash, base.fingerprint)


def task_hash(task: Task) -> str:
    """SHA-256 of all rows of a task, in hexadecimal."""
    digest = hashlib.sha256()
    for row in (*task.train, None, *task.test):
        parts = () if row is None else (row.id, row.context, row.question, str(row.answer), *row.choices)
        digest.update("\x1f".join((*parts, "\x1e")).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def record_provenance(
    folder: Path, run: ResolvedRun, provenance: Provenance, allowed: Collection[str] | None = None
) -> None:
    """Write `config.yaml` and `origin.json`, or compare with those that are there.

    Every setting of the method is written, also those that nobody gave: a later version may have another default.

    Training may grow longer and change its learning rates, with a note; other differences must be allowed by name.

    Args:
        folder: the run directory.
        run, provenance: of what is to go on there.
        allowed: fields that may differ, as the message names them, or a whole section of them; None: none may, and
            the message does not speak of it.

    Raises:
        AbmllError: names every field that differs, and its two values.
    """
    file = folder / "config.yaml"
    if not file.exists():
        write_text(file, run.pinned.to_sealed_yaml())
        write_sealed_json(folder / PROVENANCE, {**vars(provenance), "changes": []})
        return
    before = resolve(configuration_of_run(file))
    recorded = _read_provenance(folder, provenance)
    changed = differences(before, run)
    changed |= {
        name: (recorded.get(name), value) for name, value in vars(provenance).items() if recorded.get(name) != value
    }
    refused = {
        n: pair for n, pair in changed.items() if not (_may_change(n, pair, run.config) or _allowed(n, pair, allowed))
    }
    if refused:
        raise AbmllError(
            f"{folder} holds a run of another configuration: {describe_differences(refused)}. Go back to its "
            f"configuration{overrides_to_restore(refused)} or choose another folder{_flags(refused, allowed)}"
        )
    for name, pair in changed.items():
        log.warning("%s: %s; what is there was made before the change", folder, describe_differences({name: pair}))
    schedules = [v for n, v in fields_of(_values(run)) if n.startswith("method.") and n.endswith("schedule")]
    if "training.iterations" in changed and any(value != "constant" for value in schedules):
        log.warning("%s: scheduled rates go by the new training.iterations from here on", folder)
    changes = [*recorded.get("changes", []), *({"field": n, "from": a, "to": b} for n, (a, b) in changed.items())]
    write_sealed_json(folder / PROVENANCE, {**vars(provenance), "changes": changes})
    write_text(file, run.pinned.to_sealed_yaml())


def _read_provenance(folder: Path, now: Provenance) -> dict[str, Any]:
    """What the run was computed on; where that is lost, what is there now, with a warning."""
    if (folder / PROVENANCE).exists():
        return read_sealed_json(folder / PROVENANCE, advice="put it back from a copy, or delete it to go on without it")
    log.warning("%s: is missing, so whether data, tokenizer and model are the same cannot be told", folder / PROVENANCE)
    return {**vars(now), "changes": []}


def configuration_of_run(file: Path) -> RunConfig:
    """What a run was begun with: a default that its configuration does not name is that of then.

    Raises:
        AbmllError: the file is damaged.
    """
    config = load_config(RunConfig, file)
    method = {**EARLIER_DEFAULTS.get(config.method.name, {}), **config.method.model_dump(mode="json")}
    return config.model_copy(update={"method": MethodConfig(**method)})


def differences(before: ResolvedRun, now: ResolvedRun) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configurations differ, except `UNCOMPARED` -> both values; methods as they resolve."""
    one, other = dict(fields_of(_values(before))), dict(fields_of(_values(now)))
    names = [name for name in {**one, **other} if not name.startswith(UNCOMPARED) and one.get(name) != other.get(name)]
    return {name: (one.get(name), other.get(name)) for name in names}


def _values(run: ResolvedRun) -> dict[str, Any]:
    """Every value; a preset is what it stands for."""
    values = run.pinned.model_dump(mode="json")
    return {**values, "method": {name: value for name, value in values["method"].items() if name != "preset"}}


def describe_differences(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences in words.

    >>> describe_differences({"adapter.rank": (8, 4), "data": ({"a": "1", "b": "2"}, {"a": "3"})})
    'adapter.rank was 8, is 4; data: other rows in a, without b'
    """
    return "; ".join(
        _describe_data(*pair) if name == "data" else f"{name} was {_short(pair[0])}, is {_short(pair[1])}"
        for name, pair in changed.items()
    )


def overrides_to_restore(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The settings of before as overrides in brackets, where they are few and can be written so.

    >>> overrides_to_restore({"adapter.rank": (8, 4), "method.phi": ("reset", "persistent")})
    ' (adapter.rank=8 method.phi=reset)'
    """
    short = all("." in name and isinstance(pair[0], str | int | float | None) for name, pair in changed.items())
    if not short or len(changed) > MOST_ADVISED:
        return ""
    values = {n: before if isinstance(before, str) else json.dumps(before) for n, (before, _) in changed.items()}
    return f" ({' '.join(f'{name}={value}' for name, value in values.items())})"


def _flags(refused: Mapping[str, tuple[Any, Any]], allowed: Collection[str] | None) -> str:
    if any(_lacks_moments(name, pair) for name, pair in refused.items()):
        return ": its checkpoints hold no moments of the inner steps to go on with"
    return "" if allowed is None else f", or accept it with {' '.join(f'--allow-change {n}' for n in refused)}"


def _describe_data(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    parts = {
        "other rows in": [name for name in now if name in before and before[name] != now[name]],
        "without": [name for name in before if name not in now],
        "with": [name for name in now if name not in before],
    }
    return "data: " + ", ".join(f"{what} {', '.join(names[:5])}" for what, names in parts.items() if names)


def _short(value: Any) -> str:
    return str(value)[:60]


def _may_change(name: str, pair: tuple[Any, Any], config: RunConfig) -> bool:
    """Whether a field may change without being allowed by name."""
    before, now = pair
    if name == "training.iterations":
        return bool(now >= before)
    if name.startswith("adaptation."):
        return config.tasks.validation is None  # else training stops by it
    return name.startswith(CHANGED_WITH_NOTE) or (name.startswith("method.") and name.endswith("lr"))


def _allowed(name: str, pair: tuple[Any, Any], allowed: Collection[str] | None) -> bool:
    """Whether a field was allowed to change by name, and can."""
    named = any(name == field or name.startswith(f"{field}.") for field in allowed or ())
    return named and not _lacks_moments(name, pair)


def _lacks_moments(name: str, pair: tuple[Any, Any]) -> bool:
    return name == "method.inner_optimizer_state" and pair == ("fresh", "persistent")
