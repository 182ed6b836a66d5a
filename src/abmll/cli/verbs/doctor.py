"""`abmll doctor`: what this machine and installation can do; or where a batch stopped being finite."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import existing
from abmll.cli.lazy import command_app, quick_imports

app = command_app()


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The same facts as JSON.")] = False,
    batch: Annotated[
        Path | None,
        typer.Option(
            help="Replay the batch.json (or its folder) of a loss that was not finite.",
            show_default=False,
            callback=existing,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(help="Run the kernels and compare them with float64; on CUDA a minute or two, once."),
    ] = True,
) -> None:
    """Tell versions, devices, which kernels run, why and whether right, free memory, the hub, and what to do.

    With --batch, replay a batch whose loss or gradient was not finite, and name the first term, layer and factor that
    is not. Example: `abmll doctor --batch runs/mine/non-finite/step-000012-position-0/batch.json`
    """
    if batch is not None:
        with quick_imports():
            from abmll.cli.work.doctor_batch import show_batch  # after the arguments

        show_batch(batch)
        return

    with quick_imports():
        from abmll.cli.work.doctor import show_diagnosis  # after the arguments

    show_diagnosis(as_json=as_json, check=check)
