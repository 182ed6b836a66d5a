"""The report in a real browser: what names, notes and tasks hold is text there, and nothing is fetched."""

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from abmll.report import write_report
from tests.report_folder import make_folder

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ATTACKS = (
    "<script>document.title='owned'</script>",
    "</style><script>document.title='owned'</script>",
    "</title><img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onmouseover='document.title=1' x='",
    "<a href=javascript:document.title=1>x</a>",
    "</svg></table></html><iframe srcdoc='<script>parent.document.title=1</script>'>",
    "{{ 7 * 7 }}",
    "$\\frac{1}{",
    "&lt;script&gt;",
)
FETCHING = ("<link rel=stylesheet href={0}/a>", "<img src={0}/b>", "@import '{0}/c';", "url({0}/d)")


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and what it was asked for."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    server.server_close()


class Page(HTMLParser):
    """Tags, attributes and text of what a browser made of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def dom(page: Path, profile: Path) -> str:
    """The page's document after its scripts, if it has any, have run."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--virtual-time-budget=500"]
    command = [str(BROWSER), *options, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_trust_46_a_browser_takes_everything_in_a_report_for_text(tmp_path: Path, asked: tuple[str, list[str]]) -> None:
    address, requests = asked
    names = [attack.replace("/", "\u2215") for attack in ATTACKS[:2]]  # a system's name is that of a folder
    tasks = (*ATTACKS, *(text.format(address) for text in FETCHING))
    note = " ".join((*ATTACKS, *(text.format(address) for text in FETCHING)))
    folder = make_folder(
        tmp_path / "out",
        systems=("lora", *names),
        tasks=tasks,
        seeds=1,
        draws=1,
        questions=4,
        checkpoints=(60,),
        note=note,
    )
    write_report(folder)
    control = tmp_path / "control.html"
    control.write_text(f"<title>x</title>{ATTACKS[0]}<img src={address}/control>")
    assert "<title>owned</title>" in dom(control, tmp_path / "profile")  # this browser runs scripts, and fetches
    assert requests == ["/control"]
    shown = Page(dom(folder / "report.html", tmp_path / "profile"))
    assert shown.tags.isdisjoint({"script", "img", "link", "iframe", "object", "embed", "base", "form", "a"})
    assert not [name for name, _ in shown.attributes if name.startswith("on") or name in ("src", "srcdoc")]
    assert "owned" not in shown.text.replace("'owned'", "")
    for text in (*names, *tasks):
        assert text in shown.text
    assert requests == ["/control"]
