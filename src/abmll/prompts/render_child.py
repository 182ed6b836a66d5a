"""Renders templates that others wrote, as a program: one request a line in, one answer a line out, both JSON.

`abmll.prompts.rendering` starts it, and says what for. It imports nothing of abmll.
"""

import faulthandler
import functools
import json
import os
import signal
import sys
from typing import Any

MEBIBYTES = 512
CHARACTERS = 4 << 20


def _render_own(request: dict[str, Any]) -> str:
    """A template of the user's; `values` None: it is only compiled."""
    import jinja2.sandbox  # noqa: F401 # optional extra: not one, but it is loaded before time runs

    _begin(request["seconds"])
    template = _compiled(request["template"])
    return "" if request["values"] is None else template.render(request["values"])


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    from jinja2 import StrictUndefined  # optional extra: not one, but chat templates do without
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # optional extra: as above

    return ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined).from_string(text)


def _render_chat(request: dict[str, Any]) -> str:
    """A tokenizer's chat template, in the sandbox that transformers has for it; this does not import torch."""
    from transformers.utils.chat_template_utils import render_jinja_template  # optional extra: as above; a second

    _begin(request["seconds"])
    values = {**request["values"], "chat_template": request["template"], "add_generation_prompt": True}
    return render_jinja_template(**values)[0][0]


def _begin(seconds: float) -> None:
    """From here on: so much time and so much more memory. The watch is C and ends the process even inside C."""
    if sys.platform == "linux":
        import resource  # optional extra: not on Windows

        with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib would be the slowest import here
            have = int(file.read().split()[0]) * resource.getpagesize()
        limit = have + (MEBIBYTES << 20)
        if resource.getrlimit(resource.RLIMIT_AS)[0] in (resource.RLIM_INFINITY, -1):
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        text = (_render_chat if request["kind"] == "chat" else _render_own)(request)
        if len(text) > CHARACTERS:
            return {"error": f"its text is longer than {CHARACTERS:,} characters"}
        return {"text": text}
    except MemoryError:
        return {"error": f"it needs more than {MEBIBYTES} MiB of memory"}
    except Exception as error:  # a template is code and may fail in any way
        return {"error": str(error)[:1000] or type(error).__name__}
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Answer until the input ends, which it does when the asking process ends, however that came about."""
    # sent to whole groups of processes; the asking one decides
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.path[:] = json.loads(sys.argv[1])
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # nothing else may write where answers are read
        for line in sys.stdin:
            print(json.dumps(_answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
