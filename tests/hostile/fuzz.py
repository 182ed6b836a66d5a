"""The long campaign, `make fuzz`: spoilt files of every kind in large numbers. Writes RESULTS.md beside this file.

The short form is in the default suite. Every case is made from its kind, seed and number, which a failure is told by.
"""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.hostile.corpus import bad, spoilt, tally
from tests.hostile.targets import TARGETS

RESULTS = Path(__file__).with_name("RESULTS.md")
COUNT, SLOW, DRAWN, SEED = 1000, 300, 40, 1
"""Files of each kind; fewer of those that take longer to read, and of reports, which are drawn."""


def campaign() -> Iterator[str]:
    """The lines of the results; ends at the first kind with a file that ended otherwise than it must."""
    yield "# Spoilt files"
    yield ""
    yield f"`make fuzz`, seed {SEED}: one file of a good folder is spoilt (cut, bits flipped, pieces lost, repeated or"
    yield "blanked, another file in its place; values, names and headers replaced, lost, given twice), checksums often"
    yield "mended afterwards, and the folder is read as the library reads it. *Refused*: one clear `AbmllError` of"
    yield "bounded length. *Read*: the damage was harmless, or its bad rows were skipped and counted. Nothing else may"
    yield "happen, and nothing may be written outside the folder."
    yield ""
    yield "| kind | files | refused | read | another error |"
    yield "|---|---|---|---|---|"
    for kind in TARGETS:
        began, count = time.perf_counter(), {"reports": DRAWN, "comparisons": SLOW, "models": SLOW}.get(kind, COUNT)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "corpus"
            folder.mkdir()
            outcomes = list(spoilt(kind, count, folder, SEED))
        found = tally(outcomes)
        print(f"{kind}: {dict(found)}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        for outcome in bad(outcomes)[:10]:
            print(f"  {outcome.case}: {outcome.done}: {outcome.became}: {outcome.said[:200]!r}", file=sys.stderr)
        yield f"| {kind} | {count:,} | {found['refused']:,} | {found['read']:,} | {len(bad(outcomes)):,} |"


def main() -> None:
    """Run it, and write the results if every file ended as it must."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    lines = list(campaign())
    if any(line.startswith("| ") and not line.endswith((" 0 |", " another error |")) for line in lines):
        sys.exit("some files ended in another error: see above")
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
