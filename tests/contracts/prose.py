"""How long sentences are: `python -m tests.contracts.prose` prints the counts of every page on evidence.

Counted are the words of running text, list items included. Tables, code, headings, pictures and addresses of links are
not; a link's own words are part of their sentence. A sentence ends at a full stop, question or exclamation mark that a
space or the end follows, and with its paragraph or list item.
"""

import re
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs/evidence.md", *sorted((ROOT / "docs/evidence").glob("*.md"))]
MEDIAN_WORDS, MOST_WORDS = 16, 40
P_VALUE = re.compile(r"\bp(?:-values?)?\s*(?:=|<|>|of)\s*\.?\d")


def running_text(text: str) -> list[str]:
    """Paragraphs and list items, each in one line, without what does not count."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#+ )|    ", line)]
    begins = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n", "\n".join(lines), flags=re.MULTILINE)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", begins) if part.strip()]


def sentences(text: str) -> list[str]:
    """The sentences of a page."""
    plain = [re.sub(r"[*`]", "", part) for part in running_text(text)]
    return [one.strip() for part in plain for one in re.split(r"(?<=[.!?])\s+", part) if one.strip()]


def words(sentence: str) -> int:
    """Words and numbers of a sentence; signs alone are none."""
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def bullet(text: str, name: str) -> str:
    """A list item that begins with a name in bold, up to the table or the next item."""
    found = re.search(rf"^- \*\*{re.escape(name)}\*\*(.*?)(?=^- |\n\s*\||\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, name
    return re.sub(r"^  ", "", found[1].strip(), flags=re.MULTILINE)


def main() -> None:
    for page in PAGES:
        found = sentences(page.read_text(encoding="utf-8"))
        lengths = [words(one) for one in found]
        name = page.relative_to(ROOT)
        print(f"{name}: {len(found)} sentences, median {median(lengths):g} words, most {max(lengths)}")


if __name__ == "__main__":
    main()
