"""Old names work, with a warning at the caller's line that says the new one."""

import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch.nn import Linear

import abmll
from abmll.deprecation import renamed_keywords
from abmll.question import Question


def test_a_question_takes_and_gives_its_location_by_the_old_name_too() -> None:
    with pytest.warns(DeprecationWarning, match=r"Question\(place=\) is now Question\(location=\)"):
        old = Question("1", "Red?", ("yes", "no"), 0, place="a.csv:2")  # type: ignore[call-arg]
    assert old.location == "a.csv:2"
    with pytest.warns(DeprecationWarning, match=r"Question\.place is now Question\.location"):
        assert old.place == "a.csv:2"


def test_the_warning_names_the_line_of_the_caller() -> None:
    """In a process of its own: under pytest the type checks stand between caller and callee."""
    lines = ("from abmll.question import Question", "q = Question('1', '?', ('a', 'b'), 0, place='f:1')", "q.place")
    done = subprocess.run([sys.executable, "-W", "always", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert re.findall(r"^<string>:(\d): DeprecationWarning", done.stderr, re.MULTILINE) == ["2", "3"], done.stderr


def test_a_question_given_by_position_or_copied_warns_of_nothing() -> None:
    """Warnings of old names are errors under pytest."""
    question = Question("1", "Red?", ("yes", "no"), 0, "", "a.csv:2", "group 1")
    assert (question.location, question.group) == ("a.csv:2", "group 1")
    assert replace(question, id="2").location == pickle.loads(pickle.dumps(question)).location == "a.csv:2"


def test_a_call_with_both_names_is_refused() -> None:
    with pytest.raises(TypeError, match="location= and its old name place="):
        Question("1", "Red?", ("yes", "no"), 0, location="a.csv:2", place="a.csv:3")  # type: ignore[call-arg]


def test_keywords_that_are_not_known_are_still_refused() -> None:
    @renamed_keywords({"old": "new"})
    def double(new: int) -> int:
        return 2 * new

    with pytest.warns(DeprecationWarning, match=r"double\(old=\) is now double\(new=\)"):
        assert double(old=2) == 4  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        double(other=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["load", "save", "list"])
def test_posteriors_are_saved_by_their_old_names_too(kind: str) -> None:
    old, new = (f"{kind}_tasks", f"{kind}_posteriors") if kind == "list" else (f"{kind}_task", f"{kind}_posterior")
    with pytest.warns(DeprecationWarning, match=rf"abmll\.{old} is now abmll\.{new}; the old name works"):
        assert getattr(abmll, old) is getattr(abmll, new)
    with pytest.warns(DeprecationWarning, match=r"abmll\.SavedTask is now abmll\.SavedPosterior"):
        assert abmll.SavedTask is abmll.SavedPosterior


def test_warnings_of_old_names_are_errors_here_all_of_them() -> None:
    """By one wording, which `filterwarnings` of pytest knows: no other file of the library words one of its own."""
    source = Path(abmll.__file__).parent
    warning = {path.name for path in source.rglob("*.py") if "DeprecationWarning" in path.read_text(encoding="utf-8")}
    assert warning == {"deprecation.py"}
    for use in (
        lambda: abmll.predict,
        lambda: abmll.attach(Linear(2, 2), with_std=False),
        lambda: abmll.load_model(None, shape="tiny-llama"),
        lambda: Question("1", "Red?", ("yes", "no"), 0, place="a.csv:2"),  # type: ignore[call-arg]
    ):
        with pytest.raises(DeprecationWarning, match="the old name works for one minor version"):
            use()
