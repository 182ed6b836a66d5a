"""The mean as a stock PEFT LoRA: the adapter of a run or a saved task, in a folder of its own."""

import logging
from pathlib import Path

from abmll.adapters.facts import StoredAdapter
from abmll.adapters.folder import write_adapter
from abmll.exporting.size import REPORT_FILE, check_size
from abmll.files import write_sealed_json
from abmll.runs.card import About, write_card

logger = logging.getLogger(__name__)


def export_mean(stored: StoredAdapter, out: Path | str, *, confirmed: bool = False, about: About | None = None) -> None:
    """Write the means as a LoRA for any PEFT or llama.cpp, the stds beside them, and read all of it again.

    Args:
        stored: from `read_adapter`.
        out: a folder that is new or empty.
        confirmed: whether more than a gigabyte is meant.
        about: for its model card; None: the card tells the adapter's own facts alone.

    Raises:
        AbmllError: the folder is in use, or what was read is not what was written.
        OSError: the disk is full, ...; nothing is left then.
    """
    out = Path(out)
    check_size(stored.bytes, out, confirmed)
    if stored.moves_nothing:
        logger.warning("%s: every mean is zero, so this LoRA changes nothing: was the run trained?", out)

    def more(beside: Path) -> None:
        write_sealed_json(beside / REPORT_FILE, {"kind": "mean", **source_of(stored)})
        write_card(beside, about or About(out.name, stored.facts))

    write_adapter(stored, out, more)


def source_of(stored: StoredAdapter) -> dict[str, object]:
    """What every export says of where it came from."""
    facts = stored.facts
    return {"slot": facts.slot, "method": facts.method, "base": facts.base.model_dump(), "by": facts.written_by}
