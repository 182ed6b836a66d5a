"""The grammar of noise keys: each key that noise is drawn by is made here, of coordinates that say where it is drawn.

Noise is a function of (key, counters) without any state (`abmll.kernels.noise`), so a key made again is the same noise
again: in a run that goes on, on another rank, in a batch that is replayed, in an export. Another key makes another run,
so what stands here stays (tests/golden/noise_keys.json).

| drawn for | coordinates | key |
|---|---|---|
| an inner or outer step of training | (seed, meta-iteration, position, step) | `step_key` |
| a step of adaptation to an unseen task | (seed, `ADAPTATION`, draw of examples, step) | `step_key` |
| sample s of a comparison's prediction | (training seed, draw of examples, task) | `prediction_keys`, the s-th |
| sample s of a user's answer, draw s of an export | `POSTERIOR` | `draw_key(s)` |

Within a step, keys are derived on the device, where a captured graph makes them of the key of its replay: for each
training sample `sample_key`, for the rows that the KL visits `rows_key`. A mask of dropout and the counters of a draw
(layer, row, question, token) are the kernels'.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Int
from torch import Tensor

from abmll.adapters.layer import AdapterSet, Sampler
from abmll.errors import AbmllError
from abmll.kernels.noise import derived_key, key_tensor, noise_key

Coordinates = tuple[int | str, ...]
"""Where noise is drawn, as names and counters."""
StepCoordinates = tuple[int, ...]
"""Those of a gradient step: (seed, meta-iteration, position, step), or the first three for all steps of a task."""
ADAPTATION = 1 << 30
"""Stands for the meta-iteration in the coordinates of adaptation steps, which belong to none."""
POSTERIOR: Coordinates = ("posterior",)
"""The coordinates of predictions that belong to no experiment: a user's rows, an export."""
VALIDATION: Coordinates = (0,)
"""Those of validation, which answers by the mean weights and so draws nothing."""


def training_coordinates(seed: int, iteration: int, position: int) -> StepCoordinates:
    """Of the task at a position of a meta-iteration's meta-batch; the number of a step is added."""
    return seed, iteration, position


def adaptation_coordinates(seed: int, draw: int) -> StepCoordinates:
    """Of the adaptation to a draw of examples; the number of a step is added."""
    return seed, ADAPTATION, draw


def cell_coordinates(seed: int, draw: int, task: str) -> Coordinates:
    """Of a comparison's predictions on a task: the same noise for every system of a training seed."""
    return seed, draw, task


def step_key(coordinates: StepCoordinates) -> Int[Tensor, "1"]:
    """The key of one gradient step.

    >>> int(step_key((0, ADAPTATION, 0, 3))) == int(step_key((0, ADAPTATION, 0, 3))) != int(step_key((0, 0, 0, 3)))
    True
    """
    return key_tensor(noise_key(*coordinates))


def sample_key(key: Int[Tensor, "*keys"], sampler: Sampler, sample: int) -> Int[Tensor, "*keys"]:
    """The key of one training sample of a step."""
    return derived_key(key, sampler, sample)


def rows_key(key: Int[Tensor, "*keys"]) -> Int[Tensor, "*keys"]:
    """The key of the rows that a step's KL visits."""
    return derived_key(key, "rows")


def prediction_keys(coordinates: Coordinates, samples: int) -> list[int]:
    """The keys of a prediction's samples, which are the same for every question.

    >>> prediction_keys(POSTERIOR, 3) == [draw_key(number) for number in range(3)]
    True
    """
    return [noise_key("predict", *coordinates, sample) for sample in range(samples)]


def draw_key(number: int) -> int:
    """The key of posterior draw `number`, which is sample `number` of a prediction at `POSTERIOR`.

    So K exports with `--draw 0` to `--draw K-1` average to the library's own prediction with `samples=K`.

    Raises:
        AbmllError: the number is negative.

    >>> draw_key(0) == draw_key(0) != draw_key(1)
    True
    """
    if number < 0:
        raise AbmllError(f"draw {number}: draws are numbered from 0")
    return noise_key("predict", *POSTERIOR, number)


@contextmanager
def drawn(adapters: AdapterSet, number: int) -> Iterator[None]:
    """Forward passes inside use the weights of one posterior draw (the `weight` sampler)."""
    with adapters.drawing("weight", key_tensor(draw_key(number), device=adapters.device)):
        yield
