"""Normal forms: one value in two forms is one, and nothing that a model reads is lost."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll.tables.normal import alike, first_sign, gist, lookalikes, same_form, tidy, trimmed

FORMS = {  # of one label
    "spaces": "  New York ",
    "spaces in a row": "New   York",
    "no-break space": "New\u00a0York",
    "narrow no-break space": "New\u202fYork",
    "ideographic space": "\u3000New\u3000York",
    "tabs and line ends around": "\tNew York\r\n",
    "byte order mark": "\ufeffNew York",
    "zero-width space": "New\u200b York\u200b",
    "word joiner": "New\u2060 York",
    "soft hyphen": "New Yo\u00adrk",
    "marks of direction": "\u202aNew York\u202c\u200e",
    "isolates": "\u2066New York\u2069",
    "joiners at the ends": "\u200dNew York\u200c",
}


@pytest.mark.parametrize("kind", FORMS)
def test_forms_of_one_label_are_read_alike(kind: str) -> None:
    assert tidy(FORMS[kind]) == "New York"
    assert same_form(FORMS[kind]) == "New York"


@pytest.mark.parametrize("text", ["Zürich", "ệ", "Å", "가", "é̩"])
def test_composed_and_decomposed_characters_are_one(text: str) -> None:
    forms = {tidy(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert forms == {unicodedata.normalize("NFC", text)}
    assert len({same_form(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}) == 1
    assert trimmed(unicodedata.normalize("NFD", text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    "text", ["👨\u200d👩\u200d👧", "❤\ufe0f", "می\u200cخواهم", "क्\u200dष", "🏴\U000e0067\U000e0062\U000e007f"]
)
def test_what_joins_characters_is_read_but_does_not_make_two_values(text: str) -> None:
    assert tidy(text) == trimmed(text) == text
    bare = "".join(c for c in text if c not in "\u200c\u200d\ufe0f" and not 0xE0000 <= ord(c) < 0xE1000)
    assert same_form(text) == same_form(bare)


@pytest.mark.parametrize(
    ("one", "other"), [("a", "A"), ("m²", "m2"), ("Ａ", "A"), ("ﬁ", "fi"), ("½", "1/2"), ("a", "а")]
)
def test_what_a_model_reads_as_something_else_stays_two(one: str, other: str) -> None:
    assert tidy(one) == one
    assert same_form(one) != same_form(other)


def test_lines_of_a_choice_and_their_indentation_stay() -> None:
    code = "def f(x):\n    return  x\n\n\ttab"
    assert tidy(f"\n{code} \n") == "def f(x):\n    return x\n\n\ttab"


def test_a_passage_keeps_what_is_inside_it() -> None:
    assert trimmed("\ufeff\u200b  one  two\u200bthree\u00a0four \n\u200e") == "one  two\u200bthree\u00a0four"


@pytest.mark.parametrize(
    ("one", "other"),
    [("good", "Good"), ("Paris", "Pаris"), ("NATO", "ΝΑΤΟ"), ("Ａ", "A"), ("x-1", "x−1"), ("it's", "it’s")],
)
def test_what_looks_alike_is_remarked(one: str, other: str) -> None:
    assert alike(one) == alike(other)
    assert lookalikes([one, "else", other]) == [(one, other)]
    assert lookalikes([one, one, "else"]) == []


def test_whether_two_rows_ask_the_same_is_not_decided_by_what_nobody_sees() -> None:
    assert gist("Is ir\u200bon a\u00a0metal?") == gist("is IRON a metal") == gist("Ｉs iron a metal")
    assert gist("3 - 2 = 1") != gist("3 + 2 = 1")


@given(st.text(max_size=30))
def test_normal_forms_are_fixed_points(text: str) -> None:
    for form in (trimmed, tidy, same_form):
        assert form(form(text)) == form(text)
    assert same_form(tidy(text)) == same_form(text)
    assert gist(tidy(text)) == gist(text)


@given(st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=30))
def test_plain_text_is_stripped_and_no_more(text: str) -> None:
    assert trimmed(text) == text.strip()
    assert " ".join(tidy(text).split()) == " ".join(text.split())


def test_the_first_sign_of_nothing_is_none() -> None:
    assert first_sign("") == first_sign('\ufeff \u200b"') == ""
