"""The page of a saved task in a real browser: by keyboard alone, on a telephone, light and dark; nothing is fetched."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from abmll.showing.page import PageRequest, make_page
from tests.everyday import write_csv
from tests.hostile.chromium import BROWSER, Tab, browsing
from tests.serving import opened_in, place_tasks, serving

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
TAB, ENTER, RIGHT, HOME = ("Tab", 9), ("Enter", 13, "\r"), ("ArrowRight", 39), ("Home", 36)
ATTACKS = (
    "</script><script>document.title='owned'</script> sun",
    "<img src=x onerror=\"document.title='owned'\"> rain",
    "</blockquote><svg onload=document.title='owned'> sun",
    "javascript:document.title='owned' \u2028 rain",
)
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_tasks(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


def shot(tab: Tab, name: str) -> None:
    """Screenshots are kept where somebody wants to look at them."""
    if folder := os.environ.get("ABMLL_SCREENSHOTS"):
        tab.screenshot(Path(folder) / f"{name}.png")


def focus_by_tab(tab: Tab, wanted: str) -> None:
    for _ in range(20):
        if tab.value("document.activeElement.id") == wanted:
            return
        tab.press(*TAB)
    raise AssertionError(f"{wanted} is not reached by Tab")


def test_trust_46_the_file_by_keyboard_on_every_screen_and_nothing_is_fetched(home: Path, tab: Tab) -> None:
    rows = write_csv(home / "rows.csv", ["text"], [[text] for text in (*ATTACKS, "the sun is over the river")])
    text, _ = make_page(PageRequest(home / "runs" / "mine", "t", rows=rows, examples=home / "my.csv"))
    file = home / "page.html"
    file.write_text(text, encoding="utf-8")
    tab.events.clear()
    tab.size(1200, 900)
    tab.open(file.as_uri())
    assert tab.value("document.querySelectorAll('#systems table').length") == 4
    for attack in ATTACKS:
        assert tab.value("document.getElementById('text').textContent") == attack
        assert tab.value("document.querySelectorAll('#text *').length") == 0
        focus_by_tab(tab, "on")
        tab.press(*ENTER)
    assert "owned" not in tab.value("document.title")
    focus_by_tab(tab, "risk")
    tab.press(*HOME)
    assert "that needs 230 labelled rows held back" in tab.value("document.getElementById('verdict').textContent")
    while "Nothing can be promised" in tab.value("document.getElementById('verdict').textContent"):
        tab.press(*RIGHT)
    said = tab.value("document.getElementById('verdict').textContent")
    assert "every row is answered" in said
    assert "This question: answered." in said
    assert "0.0 %" not in said
    for name, (width, height, dark) in {
        "wide": (1200, 900, False),
        "wide-dark": (1200, 900, True),
        "phone": (360, 740, False),
        "phone-dark": (360, 740, True),
    }.items():
        tab.size(width, height, dark)
        assert tab.value("document.documentElement.scrollWidth") <= width, name
        colour = tab.value("getComputedStyle(document.body).backgroundColor")
        assert colour == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 254)")
        shot(tab, name)
    small = "[...document.querySelectorAll('button,select')].filter(e => e.offsetHeight && e.offsetHeight < 44).length"
    assert tab.value(small) == 0, "what is touched is as large as a finger"
    assert tab.asked_for() == [file.as_uri()]
    assert tab.complaints() == []


def test_trust_46_a_servers_page_takes_its_token_and_typed_questions(home: Path, tab: Tab) -> None:
    with serving(opened_in(home, "t", "own"), token=TOKEN, examples={"t": home / "my.csv"}) as client:
        tab.size(1200, 900)
        tab.call("Page.navigate", url=f"http://127.0.0.1:{client.port}/")
        tab.until("!document.getElementById('entry').hidden")
        assert tab.value("document.getElementById('answer').hidden")
        focus_by_tab(tab, "token")
        tab.call("Input.insertText", text=TOKEN)
        tab.press(*ENTER)
        tab.until("document.querySelectorAll('#systems table').length === 4")
        tab.events.clear()
        focus_by_tab(tab, "typed")
        tab.call("Input.insertText", text=ATTACKS[0])
        tab.press(*TAB)
        tab.press(*ENTER)
        tab.until("document.getElementById('text').textContent.endsWith('script> sun')")
        assert "owned" not in tab.value("document.title")
        shot(tab, "served")
        assert tab.asked_for() == [f"http://127.0.0.1:{client.port}/v1/bars"]
        assert [e for e in tab.complaints() if "401" not in str(e)] == []
