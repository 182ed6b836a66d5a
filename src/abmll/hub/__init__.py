"""Why the Hugging Face hub does not give a model or a data set, in words, whatever its client raised."""

from collections.abc import Iterator

from huggingface_hub import errors

UNREACHABLE = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError)


def hub_failure(error: BaseException, kind: str) -> str | None:
    """What the hub refuses or lacks, and what to do about it.

    Args:
        error: as it was raised; its causes are looked at too.
        kind: what was asked for: "model", "data set".

    Returns:
        None if the hub refused nothing: it could not be reached, or the fault is another.

    >>> cause = errors.HFValidationError("no id")
    >>> hub_failure(cause, "model")
    'no such model on the hub, or it is private (`hf auth login`)'
    """
    if caused_by(error, errors.GatedRepoError):
        return "it is gated: ask for access on its page, then log in with `hf auth login`"
    if caused_by(error, errors.RepositoryNotFoundError, errors.HFValidationError):
        return f"no such {kind} on the hub, or it is private (`hf auth login`)"
    if caused_by(error, errors.RevisionNotFoundError):
        return f"this {kind} has no such revision: give a commit, a tag or a branch of it"
    return None


def caused_by(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether an error, or one that it came from, is of one of these kinds."""
    return any(isinstance(cause, kinds) for cause in _causes(error))


def first_line(error: BaseException, most: int = 300) -> str:
    """The kind of an error and the first line of its text, which may be a page of HTML.

    >>> first_line(ValueError("a long story\\nof many lines"))
    'ValueError: a long story'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:most]}" if lines else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
