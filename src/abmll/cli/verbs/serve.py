"""`abmll serve`: saved tasks over HTTP."""

import os
from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import OverridesArgument, RunArgument, existing
from abmll.cli.console import note, say
from abmll.cli.lazy import command_app, quick_imports
from abmll.config import parse_overrides
from abmll.errors import AbmllError
from abmll.metrics.abstention import check_share

KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
"""Kernels that oneDNN, and PyTorch's layer over it, keep: by default 1,024 each, one for each shape of a batch, with
memory of its own, so that a server of a tiny model grew by a third in 8,000 rows. They are as fast made anew."""
app = command_app()


@app.command()
def serve(
    run: RunArgument,
    task: Annotated[list[str], typer.Option(help="A saved task; may be given again.", show_default=False)],
    overrides: OverridesArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that requests must bear. Default: ABMLL_SERVE_TOKEN.", callback=existing
        ),
    ] = None,
    abstain_below_risk: Annotated[
        float | None, typer.Option(help="Share of wrong answers that is promised, where a request does not say.")
    ] = None,
    pilot: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows without labels that fix the thresholds of the promise; without, it is about all rows or none.",
            metavar="[TASK=]FILE",
        ),
    ] = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(help="The labelled rows that a task was adapted to, for the page at /.", metavar="[TASK=]FILE"),
    ] = None,
    page: Annotated[bool, typer.Option(help="Whether there is a page at /, which asks the base model, too.")] = True,
    rows: Annotated[int, typer.Option(min=1, help="Most rows of a request.")] = 1024,
    body: Annotated[int, typer.Option(min=1024, help="Most bytes of a request.")] = 4 << 20,
    queue: Annotated[int, typer.Option(min=1, help="Most rows that wait, of all requests.")] = 8192,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second of a client; 0: any.")] = 100.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request is given up.")] = 120.0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds that a stop waits for what was asked.")] = 30.0,
) -> None:
    """Serve saved tasks over HTTP: POST rows, get probabilities, confidence, and what is promised of them.

    POST /v1/classify takes {"model": TASK, "input": [texts]} or {"model": TASK, "rows": [rows]}; /docs describes it.
    Several tasks share the base model; / has a page to try them. Answers are those of `abmll predict`. SIGTERM: what
    was asked is answered, then it ends. docs/serving.md has more.

    Example: `abmll serve runs/mine --task mytask`
    """
    if abstain_below_risk is not None:
        check_share("--abstain-below-risk", abstain_below_risk)
    values = parse_overrides(overrides or [])
    pilots, shown = _files("--pilot", pilot or [], task), _files("--examples", examples or [], task)
    for variable, count in KERNELS.items():  # before torch is imported, which reads them
        os.environ.setdefault(variable, count)

    with quick_imports():
        from abmll.serving.limits import Limits  # after the arguments
        from abmll.serving.server import Address, read_token, serve_run  # after the arguments
        from abmll.showing.opening import ToServe  # after the arguments

    address = Address(host, port, read_token(token_file), drain)
    limits = Limits(body, rows, queue, rate, seconds=timeout)
    note(f"loading the model of {run}")

    def listening(at: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        say(f"Listening: http://{shown}:{at} ({', '.join(task)})")

    asked = ToServe(run, task, abstain_below_risk, pilots, shown, values)
    serve_run(asked, address, limits, listening, page=page)
    say("Stopped")


def _files(option: str, given: list[str], tasks: list[str]) -> dict[str, Path]:
    """Files of tasks by name, or of the one that there is."""
    found: dict[str, Path] = {}
    for text in given:
        name, is_named, file = text.partition("=")
        if not is_named and len(tasks) == 1:
            name, file = tasks[0], text
        if not file or name in found:
            raise AbmllError(f"{option} {text}: expected TASK=FILE, once for each task")
        existing(Path(file))
        found[name] = Path(file)
    return found
