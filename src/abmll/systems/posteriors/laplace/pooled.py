"""The prior's precision that is learned over training tasks (`posterior.precision: pooled`), and its file.

Each training task gives one episode as at test time (`abmll.systems.meta_rows`): its rows are adapted to, and give an
evidence of the precision. The precision is that of the largest sum of these log evidences: the one number of the prior
N(theta, 1 / lambda) that is learned beside its mean.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abmll.adapters.folder import checksum
from abmll.config import RunConfig
from abmll.errors import AbmllError, NonFiniteError
from abmll.files import MOST_JSON, read_sealed_json, write_sealed_json
from abmll.question import Task
from abmll.systems.plans import ResolvedRun
from abmll.systems.posteriors.laplace.evidence import Evidence, pooled
from abmll.systems.posteriors.laplace.posterior import Laplace
from abmll.systems.posteriors.settings import resolve_posterior
from abmll.systems.scale import ADAPTER, NO_OTHER_SCALE, TOO_SMALL
from abmll.systems.system import System
from abmll.training.finite import without_folders

PRECISION_FILE = "prior_precision.json"
_ADVICE = "delete it: `abmll train` and `abmll compare` learn it again (posterior.precision=pooled)"
_OF_CURVATURE = ("centre", "form", "inputs_mean")


class Learned(BaseModel):
    """A precision, and what it was learned from.

    Attributes:
        precision: of the largest evidence in sum.
        tasks: of each task, the precision that has the largest evidence of that task alone.
        left_out: others that should have been adapted to, and why they were not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    precision: float = Field(gt=0)
    tasks: dict[str, float]
    left_out: dict[str, str]


class StoredPrecision(BaseModel):
    """The file: a precision, and whose it is.

    Attributes:
        weights: SHA-256 of the adapter beside it.
        step: the meta-iteration that its weights are of.
        settings: those that phi and its curvature depend on besides.
        learned: the precision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weights: str
    step: int
    settings: dict[str, dict[str, Any]]
    learned: Learned

    def is_of(self, folder: Path, run: ResolvedRun, step: int) -> bool:
        """Whether learning it again at a step would give the same; a setting of a later version is no difference."""
        now = _settings(run.pinned)
        same = all({**now[name], **then} == now[name] for name, then in self.settings.items())
        return same and self.step == step and self.weights == checksum(folder / ADAPTER)


def learn_precision(
    posterior: Laplace, episodes: Mapping[str, Task | None], adapt: Callable[[Task], object]
) -> Learned:
    """Adapt to every episode, and find the precision of the largest evidence in sum.

    A task whose adaptation is not finite is left out and named.

    Args:
        posterior: is fitted by each adaptation.
        episodes: by task; None for a task that is too small for one.
        adapt: adapts to an episode's train rows.

    Raises:
        AbmllError: no task is left.
        Stopped: the process was asked to stop.
    """
    left_out = {name: TOO_SMALL for name, episode in episodes.items() if episode is None}
    found: dict[str, Evidence] = {}
    for name, episode in episodes.items():
        if episode is None:
            continue
        try:
            adapt(episode)
            found[name] = posterior.evidence()
        except NonFiniteError as error:
            left_out[name] = without_folders(str(error), (*episode.train, *episode.test))
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        raise AbmllError(
            f"posterior.precision=pooled: no training task is left to learn it from ({reasons}); give a number, or "
            "null for the examples' own"
        )
    own = {name: evidence.best_precision() for name, evidence in found.items()}
    return Learned(precision=pooled(list(found.values())).best_precision(), tasks=own, left_out=left_out)


def write_precision(folder: Path, run: ResolvedRun, step: int, learned: Learned) -> None:
    """Write the file into a run directory, beside the adapter that it belongs to."""
    weights, settings = checksum(folder / ADAPTER), _settings(run.pinned)
    stored = StoredPrecision(weights=weights, step=step, settings=settings, learned=learned)
    write_sealed_json(folder / PRECISION_FILE, stored.model_dump(mode="json"))


def read_precision(folder: Path) -> StoredPrecision | None:
    """What is stored in a run directory; None if nothing is.

    Raises:
        AbmllError: the file is damaged.
    """
    file = folder / PRECISION_FILE
    if not file.exists():
        return None
    try:
        return StoredPrecision.model_validate(read_sealed_json(file, advice=_ADVICE, most=MOST_JSON))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise AbmllError(f"{file}: {where}: {error.errors()[0]['msg']}; {_ADVICE}") from error


def use_precision(system: System, folder: Path) -> None:
    """Let a system's posterior go by the precision that its run learned, for rows of a user's own.

    How many rows are adapted to, and in how many steps, is up to the user; of another curvature or likelihood it says
    nothing, and is not used.

    Args:
        system: with the shared weights of the run's adapter.
        folder: the run directory.

    Raises:
        AbmllError: the file is damaged, or was learned with other weights.
    """
    posterior = system.posterior
    if not isinstance(posterior, Laplace) or posterior.settings.precision != "pooled":
        return
    stored = read_precision(folder)
    if stored is None:
        return
    if stored.weights != checksum(folder / ADAPTER):
        file = folder / PRECISION_FILE
        raise AbmllError(f"{file}: was learned with other weights than those in {folder / ADAPTER}; {_ADVICE}")
    now = _settings(system.config)
    likelihood = (name for name in stored.settings["likelihood"] if name not in NO_OTHER_SCALE)
    same = all(stored.settings["likelihood"][name] == now["likelihood"][name] for name in likelihood)
    if same and stored.settings["posterior"] == now["posterior"]:
        posterior.pooled = stored.learned.precision


def _settings(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The settings that phi and its curvature depend on, besides the weights; as JSON has them."""
    values = config.model_dump(mode="json")
    chosen = config.posterior
    posterior = resolve_posterior(chosen.name, chosen.settings(), chosen.preset)
    assert posterior is not None, "there is a precision"
    curvature = posterior.model_dump(mode="json", include=set(_OF_CURVATURE))
    adaptation = {name: values["adaptation"][name] for name in ("examples", "steps", "batch_size", "schedule", "seed")}
    return {
        "method": values["method"],
        "likelihood": values["likelihood"],
        "adaptation": adaptation,
        "posterior": curvature,
    }
