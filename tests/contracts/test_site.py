"""The documentation: every page is in its contents, the API reference is complete, every example on a page is run."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import abmll

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(DOCS).with_suffix("").as_posix(): path
    for path in DOCS.rglob("*.md")
    if "_build" not in path.relative_to(DOCS).parts
}
RUN_BY = {
    "overview": "tests/unit/test_python.py",
    "adapters-and-exports": "tests/unit/test_docs_adapters.py",
    "add-a-method": "tests/unit/test_docs_how_to.py",
    "add-a-metric": "tests/unit/test_docs_how_to.py",
    "add-a-source": "tests/unit/test_docs_how_to.py",
    "everyday": "tests/unit/test_docs_everyday.py",
}
"""Page with Python in it -> the test that runs it. Examples with `>>>` are run by test_examples.py."""
NOT_RUN = {"lm-eval"}  # its harness fetches data; tests/unit/test_lm_eval.py makes such calls with tasks of its own


def in_contents(page: str) -> list[str]:
    """Pages that a page's tables of contents list."""
    text = PAGES[page].read_text(encoding="utf-8")
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]


def test_every_page_is_in_the_contents_once() -> None:
    listed = [name for page in PAGES for name in in_contents(page)]
    assert sorted(listed) == sorted([*(PAGES.keys() - {"index"}), "notebook"])


def test_the_reference_has_every_public_name_once_and_no_other() -> None:
    text = PAGES["api"].read_text(encoding="utf-8")
    entries = re.findall(r"^\.\. auto(\w+):: (\w+)$", text, re.MULTILINE)
    assert sorted(name for _, name in entries) == sorted(abmll.__all__), "put a new name into its group of docs/api.md"
    for kind, name in entries:
        value = getattr(abmll, name)
        assert kind == ("class" if isinstance(value, type) else "function" if callable(value) else "data"), name
        assert value.__doc__, name


def test_python_on_a_page_is_run() -> None:
    with_python = {page for page, path in PAGES.items() if "```python\n" in path.read_text(encoding="utf-8")}
    assert with_python == RUN_BY.keys() | NOT_RUN, "run what is new on a page, and say where"
    for page, test in RUN_BY.items():
        assert f"{page}.md" in (ROOT / test).read_text(encoding="utf-8")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """`make docs`, where sphinx is installed: links, headings, docstrings, equations."""
    for name in ("sphinx", "myst_nb", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"no {name} here; `make docs` installs it")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    html = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert all(f'id="abmll.{name}"' in html for name in abmll.__all__)
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', page.read_text())
        assert not fetched, page.name
