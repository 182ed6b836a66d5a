"""Pages on evidence are read by people in a hurry: short sentences, p-values in tables alone."""

from pathlib import Path
from statistics import median

import pytest

from tests.contracts.prose import MEDIAN_WORDS, MOST_WORDS, P_VALUE, PAGES, ROOT, bullet, running_text, sentences, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    found = sentences(page.read_text(encoding="utf-8"))
    assert not [one for one in found if words(one) > MOST_WORDS]
    assert median(map(words, found)) <= MEDIAN_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_p_values_stand_in_tables(page: Path) -> None:
    assert not [part for part in running_text(page.read_text(encoding="utf-8")) if P_VALUE.search(part)]


def test_the_readme_says_what_is_known_in_four_sentences() -> None:
    text = bullet((ROOT / "README.md").read_text(encoding="utf-8"), "The method.")
    found = sentences(text)
    assert len(found) == 4
    assert max(map(words, found)) <= MOST_WORDS
    assert not P_VALUE.search(text)


def test_every_page_is_linked_from_the_first() -> None:
    first = PAGES[0].read_text(encoding="utf-8")
    assert not [page.name for page in PAGES[1:] if f"(evidence/{page.name})" not in first]


def test_sentences_are_told_from_what_does_not_count() -> None:
    text = (
        "# A heading. Not counted\n\nOne has .916 and `a.b`, [two](x.md#y) has 1.5. Three?\n\n| a. b | c |\n|---|---|\n"
        "\n- An item\n  of two lines.\n- Another\n\n```sh\ncode. more\n```\n\n![a. picture](x.png)\n\n    python x. y\n"
    )
    assert sentences(text) == ["One has .916 and a.b, two has 1.5.", "Three?", "An item of two lines.", "Another"]
    assert words("One has .916 - and a.b") == 5
    assert P_VALUE.search("(p = .13 after Holm)")
    assert P_VALUE.search("p < .05")
    assert not P_VALUE.search("no p is given")
