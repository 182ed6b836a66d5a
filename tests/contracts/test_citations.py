"""Wherever the specification is cited, it is by one form, `docs/method.md, section 3`, and the section exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "method.md"
FOLDERS = ("src", "tests", "examples", "experiments", "benchmarks", "docs")
FILES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*")))
    if path.suffix in (".py", ".md", ".yaml", ".ipynb", ".j2")
    and path not in (PAGE, Path(__file__), Path(__file__).with_name("test_paper_to_code.py"))
)
SECTIONS = {
    number: (title.strip(), body.strip())
    for number, title, body in re.findall(
        r"^## (?:(\d+)\.)?(.*)\n((?:(?!^## ).*\n?)*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
}
MENTION = re.compile(r"(?<![\w-])(?P<folder>docs/|\.\./)*method\.md")
CITATION = re.compile(r"docs/method\.md, sections? (?P<numbers>\d+(?:(?:, | and |, and )\d+)*)")
LINK = re.compile(r"\[[^\]]*\]\((?:docs/|\.\./docs/)?method\.md(?:#(?P<anchor>[\w-]+))?\)")
OTHER = re.compile(
    r"(?i)\bsections? \d+ of (?:the )?(?:method|specification)\b|\b(?:method|specification)'s sections? \d"
)


def text_of(path: Path) -> str:
    """A file's text on one line: a citation may be broken, in comments, too."""
    return re.sub(r"\s*\n[\s#>*]*", " ", path.read_text(encoding="utf-8"))


def cited(text: str) -> list[str]:
    """Numbers of the sections that a text cites."""
    return [number for found in CITATION.finditer(text) for number in re.findall(r"\d+", found["numbers"])]


def slug(title: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_sections_are_numbered_from_one_and_have_titles_and_text() -> None:
    assert list(SECTIONS) == [str(number) for number in range(1, len(SECTIONS) + 1)]
    assert len(SECTIONS) >= 7
    assert all(title and len(body) > 200 for title, body in SECTIONS.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_citations_are_of_one_form_and_of_sections_that_exist(path: Path) -> None:
    text = text_of(path)
    assert not OTHER.search(text), f"cite as `docs/method.md, section N`: {OTHER.search(text)}"
    assert set(cited(text)) <= SECTIONS.keys()
    anchors = {slug(f"{number}. {title}") for number, (title, _) in SECTIONS.items()}
    assert {found["anchor"] for found in LINK.finditer(text)} <= {None, *anchors}
    rest = CITATION.sub("", LINK.sub("", text))
    assert not MENTION.search(rest), "neither a link nor of the form `docs/method.md, section N`"


def test_code_does_cite_the_specification() -> None:
    everything = [number for path in FILES if path.suffix == ".py" for number in cited(text_of(path))]
    assert len(everything) >= 12
    assert set(everything) >= {"1", "2", "3", "4", "5"}


def test_the_page_s_own_references_are_to_sections_that_exist() -> None:
    text = text_of(PAGE)
    assert set(re.findall(r"\b[Ss]ection (\d+)", text)) <= SECTIONS.keys()
    anchors = set(re.findall(r"\(#([\w-]+)\)", text))
    assert anchors == {slug(f"{number}. {title}") for number, (title, _) in SECTIONS.items()}
    assert "-" in slug("3. How it is computed")


def test_the_page_s_mathematics_survives_markdown() -> None:
    """GitHub takes a backslash before punctuation for an escape, in formulas, too."""
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(formulas) > 100
    assert [formula for formula in formulas if re.search(r"\\[^a-zA-Z]", formula)] == []


@pytest.mark.parametrize(
    "text",
    [
        "see method.md section 3",
        "(docs/method.md)",
        "method.md's preset",
        "../docs/method.md, chapter 3",
        "docs/method.md section 2",
    ],
)
def test_other_forms_are_seen(text: str) -> None:
    assert MENTION.search(CITATION.sub("", LINK.sub("", text)))
    assert not MENTION.search("add-a-method.md")
    assert cited("as docs/method.md, sections 2 and 4, say") == ["2", "4"]
    assert OTHER.search("section 1 of the method")
