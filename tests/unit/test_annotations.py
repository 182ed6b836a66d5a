"""Under pytest the annotations of `abmll` are enforced: types, shapes, lengths of one name, results, fields."""

import random
from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import AbstractArray, AnnotationError, Float, Shaped, TypeCheckError, jaxtyped
from jaxtyping._storage import get_shape_memo, pop_shape_memo, push_shape_memo
from torch import Tensor

from abmll.kernels.eager import mean_output
from abmll.kernels.noise import kept, key_tensor, noise_key
from abmll.metrics.predictions import Prediction
from abmll.process.world import World
from abmll.question import Task
from tests.annotations import _BY_JAXTYPING, _INNER, checked


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: noise_key(object()),
        lambda: key_tensor("a key"),
        lambda: mean_output(torch.ones(2, 3), torch.ones(2, 4), torch.ones(3, 2), torch.ones(2, 5), 1.0),  # I: 4 and 5
        lambda: mean_output(torch.ones(2, 3), torch.ones(2, 4), torch.ones(3, 2), torch.ones(2, 4), "1"),
        lambda: kept(torch.ones(2), 1, 1, 0.5),  # floats, where keys are whole numbers
        lambda: Prediction(1, 0, (0.5, 0.5)),
        lambda: Task("t", (1,), ()),
        lambda: World(rank="0"),
    ],
)
def test_the_package_refuses_what_its_annotations_exclude(wrong: Callable) -> None:
    with pytest.raises(TypeCheckError):
        wrong()


def same_length(a: Float[Tensor, " n"], b: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
    return a if b is None else torch.cat([a, b])


def number(text: str) -> int:
    return text if text == "itself" else int(text)  # type: ignore[return-value]


def as_long(size: int, a: Float[Tensor, "..."]) -> Float[Tensor, "{size}"]:
    return a


def slices(a: Float[Tensor, " n"]) -> Iterator[int]:
    yield from range(len(a))


@pytest.mark.parametrize(
    ("fn", "right", "wrong"),
    [
        (same_length, (torch.ones(2),), (torch.ones(2), torch.ones(3))),  # an argument against another
        (same_length, (torch.ones(3), None), (torch.ones(2), torch.ones(2))),  # the result against an argument
        (number, ("1",), (1,)),
        (number, ("2",), ("itself",)),
        (as_long, (2, torch.ones(2)), (2, torch.ones(3))),
        (slices, (torch.ones(2),), (torch.ones(2, 2),)),
    ],
)
def test_right_calls_pass_and_wrong_ones_are_refused_as_jaxtyping_does(
    fn: Callable, right: tuple, wrong: tuple
) -> None:

    for made in (checked(fn, typechecker=beartype), jaxtyped(fn, typechecker=beartype)):
        made(*right)
        made(*right)  # one call's lengths are forgotten by the next
        with pytest.raises(TypeCheckError):
            made(*wrong)


def outer(least: int) -> Callable:
    def inner(value: int, other: Float[Tensor, " n"], *more: Float[Tensor, " n"]) -> int:
        """Of a call."""
        return "none" if value < least else value - least  # type: ignore[return-value]

    return inner


def test_an_inner_function_is_checked_each_time_it_is_made() -> None:
    """By the same checks, before the function of that call."""
    known = len(_INNER)
    first, second, third = (checked(outer(least), typechecker=beartype) for least in (1, 2, 3))
    assert len(_INNER) == known + 1
    for least, made in ((2, second), (1, first), (3, third)):
        assert made(5, torch.ones(2), torch.ones(2)) == 5 - least
        assert (made.__name__, made.__doc__) == ("inner", "Of a call.")
        for wrong in (("5", torch.ones(2)), (5, torch.ones(2), torch.ones(3)), (0, torch.ones(2))):
            with pytest.raises(TypeCheckError):
                made(*wrong)


def test_an_inner_function_with_annotations_of_its_call_has_checks_of_its_own() -> None:
    def of(kind: type) -> Callable:
        def inner(value: kind) -> kind:  # type: ignore[valid-type]
            return value

        return checked(inner, typechecker=beartype)

    number, text = of(int), of(str)
    assert (number(1), text("a"), of(int)(2)) == (1, "a", 2)
    for made, wrong in ((number, "a"), (text, 1), (of(int), "a")):
        with pytest.raises(TypeCheckError):
            made(wrong)


AXES = {"n": 3, "k": 4, "3": 3, "_": 1, "#n": 1, "n+1": 4, "*s": 5, "...": 2}
SHAPES = (
    "n",
    "n k",
    "k n",
    "n n",
    "3",
    "n 3",
    "_ n",
    "",
    "...",
    "*s",
    "*s n",
    "n *s",
    "*s 3 n",
    "n ... k",
    "#n",
    "n+1",
)
MADE = {(kind, text): (Float[kind, text], Shaped[kind, text]) for kind in (Tensor, np.ndarray) for text in SHAPES}


def test_an_array_is_judged_as_jaxtyping_judges_it_and_lengths_are_kept_alike() -> None:
    """The quick answer beside jaxtyping's own, in 2,000 calls of five arrays; about a third are as annotated."""
    draw = random.Random(0)
    answers = []
    for _ in range(2000):
        asked = [_annotated(draw, shape) for shape in draw.choices(SHAPES, k=5)]
        quick, slow = (_judged(asked, judge) for judge in (isinstance, lambda value, kind: _BY_JAXTYPING(kind, value)))
        assert quick == slow, asked
        answers += quick[0]
    assert 0.2 < np.mean([answer is True for answer in answers]) < 0.6


def _annotated(draw: random.Random, text: str) -> tuple[type[AbstractArray], object]:
    """An annotation, and an array that may be as it says."""
    shape = [AXES[axis] if draw.random() < 0.6 else draw.choice((1, 3, 4)) for axis in text.split()]
    array = np.ones(shape + [4] * (draw.random() < 0.1), draw.choice(("f4", "f8", "i8")))
    values: dict[type, object] = {Tensor: torch.from_numpy(array), np.ndarray: array}
    kind = draw.choice((Tensor, np.ndarray))
    return draw.choice(MADE[kind, text]), values[kind if draw.random() < 0.9 else Tensor]


def _judged(asked: list[tuple[type[AbstractArray], object]], judge: Callable) -> tuple[list[object], object]:
    """Answers within one call, and the lengths that it knows at the end."""
    answers: list[object] = []
    push_shape_memo({})
    for kind, value in asked:
        try:
            answers.append(judge(value, kind))
        except AnnotationError:  # n + 1, where n is not known yet
            answers.append(None)
    known = deepcopy(get_shape_memo())
    pop_shape_memo()
    return answers, known
