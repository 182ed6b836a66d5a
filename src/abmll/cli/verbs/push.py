"""`abmll push`: a run to the Hugging Face hub."""

from typing import Annotated

import typer

from abmll.cli.arguments import RunArgument
from abmll.cli.console import note, say
from abmll.cli.lazy import command_app
from abmll.hub.runs import check_repository

app = command_app()


@app.command()
def push(
    run: RunArgument,
    repository: Annotated[str, typer.Argument(help="Repository on the hub: owner/name.", show_default=False)],
    task: Annotated[list[str] | None, typer.Option(help="A saved task to push, too; may be given again.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may read it, if the repository is new; else it is private.")
    ] = False,
    with_rows: Annotated[
        bool, typer.Option("--with-rows", help="Push tasks that hold labelled rows in clear (adapt --in-prompt).")
    ] = False,
) -> None:
    """Push a run to the Hugging Face hub: its adapter and the saved tasks that are named.

    Others give `hf://owner/name@COMMIT` in the place of a run. Log in with `hf auth login`, by a token that may write.
    Rows, predictions, checkpoints and journals stay here.

    Example: `abmll push runs/mine ann/mine --task mytask`
    """
    check_repository(repository)

    from abmll.publishing import push_run  # after the arguments

    pushed = push_run(run, repository, task or (), private=not public, with_rows=with_rows)
    if pushed.local_base is not None:
        note(
            f"note: its base model is {pushed.local_base}, which is on this machine alone: whoever uses it gives "
            "model.source=..."
        )
    say(f"Pushed: {len(pushed.files)} files, {sum(pushed.files.values()):,} bytes. Everybody who may read it can use")
    say(pushed.reference)
