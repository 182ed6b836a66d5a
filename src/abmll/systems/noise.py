"""Posterior draws by number: the draws that `abmll predict` averages are those that `abmll export` merges.

A draw's noise is named by a key. `predict(..., place=POSTERIOR)` with S samples uses the draws 0 to S - 1 of this file,
so K exports with `--draw 0` to `--draw K-1` average to the library's own prediction with `samples=K`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from abmll.adapters.layer import AdapterSet
from abmll.errors import AbmllError
from abmll.kernels.noise import key_tensor, noise_key

POSTERIOR = ("posterior",)
"""The `place` of a prediction that is nobody's experiment: a user's rows, an export."""


def draw_key(number: int) -> int:
    """The noise key of posterior draw `number`, which is sample `number` of a prediction at `POSTERIOR`.

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
