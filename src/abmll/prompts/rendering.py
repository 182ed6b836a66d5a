"""Templates that others wrote, rendered where they can do no harm.

A template is a program: a user's recipe may be somebody else's, and a chat template comes with a model from the hub.
Jinja's sandbox keeps it from everything but its values, not from `{% for %}` in `{% for %}` or from `10 ** (10 ** 10)`
(which is computed when it is compiled). So it is compiled and rendered in a process of its own (`render_child`),
without environment variables, where each rendering has 2 seconds, and on Linux 512 MiB more than the process began
with; the process is ended from inside when the time is over, whatever it is at. Starting it takes a tenth of a second,
once, and a second for chat templates; then a rendering costs a fraction of a millisecond more than it would here.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from abmll.prompts import render_child

SECONDS = 2.0
"""That one rendering may take."""
KEPT = ("SYSTEMROOT", "LD_LIBRARY_PATH")
"""Environment variables that the child sees: without the first Python does not start on Windows."""


class TemplateError(ValueError):
    """Why a template has no text: it is none, it failed, or it took too much."""


def check_template(template: str) -> None:
    """Compile a user's template.

    Raises:
        TemplateError: it is none.

    >>> check_template("{{ question }}")
    """
    _ask("own", template, None)


def render(template: str, values: Mapping[str, Any]) -> str:
    """The text of a user's template; every value that it names must be there.

    Args:
        template: in Jinja.
        values: JSON values by name.

    Raises:
        TemplateError: it is none, fails, or takes too much time, memory or text.

    >>> render("{{ question }}?", {"question": "Is iron a metal"})
    'Is iron a metal?'
    """
    return _ask("own", template, values)


def render_chat(template: str, content: str, tokens: Mapping[str, Any]) -> str:
    """What a chat template makes of one message of the user's, up to where the answer begins.

    Args:
        template: the tokenizer's.
        content: of the message.
        tokens: the tokenizer's special tokens by name, which templates may use.

    Raises:
        TemplateError: as `render`.
    """
    return _ask("chat", template, {**tokens, "conversations": [[{"role": "user", "content": content}]]})


class _Child:
    """The process; it ends when its input does."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(render_child.__file__)), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "OPENBLAS_NUM_THREADS": "1"},  # else it reserves memory for each core
            text=True,
            encoding="utf-8",
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Its answer; None if it has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith("\n") else None

    def end(self) -> None:
        """End it now."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was not written yet cannot be written any more
                    continue
        self.process.wait()


_children: dict[int, _Child] = {}  # by the process that started it: a fork must not read its parent's answers
_lock = threading.Lock()


def _ask(kind: Literal["own", "chat"], template: str, values: Mapping[str, Any] | None) -> str:
    with _lock:
        child = _children.get(os.getpid()) or _start()
        answer = child.ask({"kind": kind, "template": template, "values": values, "seconds": SECONDS})
        if answer is None:
            _children.pop(os.getpid()).end()
            raise TemplateError(f"it was stopped: a template has {SECONDS:g} seconds and {render_child.MEBIBYTES} MiB")
    if "error" in answer:
        raise TemplateError(answer["error"])
    return str(answer["text"])


def _start() -> _Child:
    try:
        child = _children[os.getpid()] = _Child()
    except OSError as error:
        raise TemplateError(f"the process for templates cannot be started ({error})") from error
    return child


@atexit.register
def _end_child() -> None:
    child = _children.pop(os.getpid(), None)
    if child is not None:
        child.end()
