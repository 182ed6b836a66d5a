"""Questions without content: what a model says of choices before anything is asked."""

from collections.abc import Sequence

from abmll.question import Question

CONTENT_FREE = ("N/A", "[MASK]", "")
"""The texts of Zhao et al. (2021)."""


def without_content(choices: Sequence[str], text: str = "") -> Question:
    """A question of these choices with a text without content in the place of its stem, and without a context.

    It is the same for all questions that share their choices.

    >>> without_content(("yes", "no"), "N/A")
    Question(id="content-free 'N/A'", question='N/A', choices=('yes', 'no'), answer=None, context='')
    """
    return Question(f"content-free {text!r}", text, tuple(choices), None)
