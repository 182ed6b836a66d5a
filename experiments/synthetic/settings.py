"""What is run: the grid, and around one point of it one thing changed at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.synthetic.problem import IN, OUT, ROWS, SPREADS

FULL_RANK = min(OUT, IN)
ITERATIONS, LONG = 100, 300
SEEDS, FEW = tuple(range(5)), tuple(range(2))
OUTER_STEPS, STD_STARTS = ("displacement", "identity", "detach"), ("init", "copy")
POINT = ("displacement", "init")
"""The combination that the sweeps go around."""

COMMON = {"inner_steps": 5, "inner_lr": 0.1, "outer_schedule": "linear"}
STDS = {"std_lr": 0.05, "outer_std_lr": 0.03, "std_init": 0.1, "std_floor": 1e-3}
ELBO = {"reduction": "sum", "task_kl_weight": 1 / ROWS}
"""The true ELBO: the NLL is a mean over the support's rows, so one nat of KL weighs 1 / ROWS."""
OUTER_LR = {"displacement": 0.3, "identity": 0.01, "detach": 0.01}
CENTRES = {
    "beta": ("displacement-init", 1.0),
    "std_lr": ("displacement-init", 0.05),
    "std_init": ("displacement-init", 0.1),
    "rank": ("displacement-init", float(FULL_RANK)),
    "outer_lr": ("identity-init", 0.01),
}
"""Of each sweep: the combination it goes around, and that one's value."""
DEFAULT_KL = {"reduction": "mean", "task_kl_weight": 0.34}
"""The library's default: beta of 0.34 ROWS / (OUT IN) = 0.057 in the units of the true ELBO."""


@dataclass(frozen=True)
class Setting:
    """A system on a kind of problem.

    Attributes:
        group: the figure or table it belongs to.
        name: within the group.
        spread: kind of problem.
        method: the library's name.
        settings: the method's settings.
        seeds: of problem, data order, noise and first factors.
        rank: of every factor.
        iterations: of meta-training.
        true_theta: theta is set to the truth and not trained: what is wrong then is the inner loop's doing.
        late: run after everything else.
    """

    group: str
    name: str
    spread: str
    method: str
    settings: dict[str, Any]
    seeds: tuple[int, ...] = SEEDS
    rank: int = FULL_RANK
    iterations: int = ITERATIONS
    true_theta: bool = False
    late: bool = False

    @property
    def path(self) -> str:
        """Name of its results, without the seed."""
        return f"{self.group}/{self.spread}.{self.name}"


def abmll(outer_step: str, std_start: str, **changed: Any) -> dict[str, Any]:
    """Settings of ABMLL with the true ELBO, some of them changed."""
    combination = {"outer_step": outer_step, "std_start": std_start, "outer_lr": OUTER_LR[outer_step]}
    return {**COMMON, **STDS, **ELBO, **combination, **changed}


def settings() -> tuple[Setting, ...]:
    """All of them, the most needed first."""
    return (*_combinations(), *_points(), *_true_theta(), *_controls(), *_sweeps(), *_ranks(), *_long())


def _combinations() -> Iterator[Setting]:
    for spread in SPREADS:
        for outer_step in OUTER_STEPS:
            for std_start in STD_STARTS:
                name, late = f"{outer_step}-{std_start}", outer_step == "detach" and spread != "log_normal"
                yield Setting("combinations", name, spread, "abmll", abmll(outer_step, std_start), late=late)


def _points() -> Iterator[Setting]:
    """Point methods with ABMLL's inner steps; at twice the rank they have as many parameters."""
    for spread in SPREADS:
        yield Setting("points", "reptile", spread, "reptile", {**COMMON, "outer_lr": OUTER_LR["displacement"]})
    # `fresh` was the default when it was run
    structured = {**COMMON, "outer_schedule": "constant", "inner_optimizer_state": "fresh"}
    yield Setting("points", "structured", "log_normal", "structured", structured)


def _true_theta() -> Iterator[Setting]:
    for start in STD_STARTS:
        changed = abmll("displacement", start)
        yield Setting("true-theta", start, "log_normal", "abmll", changed, iterations=0, true_theta=True)


def _controls() -> Iterator[Setting]:
    changes = {
        "default-kl": abmll("identity", "copy", **DEFAULT_KL),
        "still-phi-stds-init": abmll("displacement", "init", std_lr=5e-4),
        "still-phi-stds-copy": abmll("displacement", "copy", std_lr=5e-4),
        "frozen-stds": abmll(*POINT, train_stds=False),
        "log-std": abmll(*POINT, std_form="log_std", training_sampler="weight"),
    }
    for name, changed in changes.items():
        yield Setting("controls", name, "log_normal", "abmll", changed, FEW)


def _sweeps() -> Iterator[Setting]:
    sweeps: dict[str, dict[float, dict[str, float]]] = {
        "beta": {b: {"task_kl_weight": b / ROWS} for b in (1e-2, 1e-1, 10.0, 100.0)},
        "std_lr": {f: {"std_lr": f, "outer_std_lr": 0.6 * f} for f in (5e-4, 5e-3, 5e-1)},
        "std_init": {f: {"std_init": f} for f in (1e-2, 3e-1, 1.0)},
    }
    for sweep, values in sweeps.items():
        for value, changed in values.items():
            yield _at(sweep, value, abmll(*POINT, **changed))
    for rate in (1e-3, 1e-1):
        yield _at("outer_lr", rate, abmll("identity", "init", outer_lr=rate))


def _at(sweep: str, value: float, changed: dict[str, Any], **more: Any) -> Setting:
    return Setting(sweep, f"{value:g}", "log_normal", "abmll", changed, FEW, **more)


def _ranks() -> Iterator[Setting]:
    for rank in (2, 4):
        yield _at("rank", rank, abmll(*POINT), rank=rank)
    for rank in (4, 8):  # as many parameters as ABMLL has at half of it
        changed = {**COMMON, "outer_lr": OUTER_LR["displacement"]}
        yield Setting("rank-reptile", str(rank), "log_normal", "reptile", changed, FEW, rank=rank)


def _long() -> Iterator[Setting]:
    """More meta-training: what the grid's length hides."""
    for outer_step, std_start in (POINT, ("displacement", "copy")):
        name = f"{outer_step}-{std_start}"
        yield Setting("long", name, "log_normal", "abmll", abmll(outer_step, std_start), SEEDS[:1], iterations=LONG)
