"""What is said where something is wrong: of a call, and of the rows of a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll.errors import AbmllError
from abmll.tables.read import RowFile
from abmll.tables.rows import BadRow


def said(act: Callable[[], Any]) -> str:
    """The message of the error that a call ends in."""
    with pytest.raises(AbmllError) as caught:
        act()
    return str(caught.value)


def rows_of(path: Path, data: bytes) -> list[tuple[int, Any]]:
    """Lines and rows of a file with this content; a bad row is its message."""
    path.write_bytes(data)
    return [(line, str(row) if isinstance(row, BadRow) else row) for line, row in RowFile(path).rows()]
