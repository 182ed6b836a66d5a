"""Registries as they are in a process of their own: what a test adds is gone after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from abmll.methods import METHODS
from abmll.scoring.registered import METRICS
from abmll.tasks.registered import SOURCES

REGISTRIES = (METHODS, SOURCES, METRICS)


@contextmanager
def fresh_registries() -> Iterator[None]:
    """Nothing is registered in the block but what is built in, and packages are looked for anew."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in REGISTRIES:
            patch.setattr(registry, "_registered", {})
            patch.setattr(registry, "_failures", {})
            patch.setattr(registry, "_entry_points", None)
        yield


def install(folder: Path, name: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Make a folder on the path that of an installed distribution, with entry points: group -> name -> value."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in each.items()) for group, each in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
