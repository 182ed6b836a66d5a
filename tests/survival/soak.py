"""The long campaigns, `make soak`: each fault so many times, and what was lost. Writes `results/NAME.md` beside it.

The short forms of all of them are in the default suite. A campaign ends at the first thing that is not as promised, and
then writes nothing.
"""

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.survival import test_ranks
from tests.survival.damage import campaign as damage
from tests.survival.kills import AFTER, POINTS, kill_at_random, kill_in_save
from tests.survival.memory import peak_of_prediction, slope, train_and_watch
from tests.survival.places import SYSTEMS, place_comparison
from tests.survival.signals import PHASES
from tests.survival.signals import campaign as signals
from tests.survival.terminal import press
from tests.survival.test_disks import test_trust_08_a_full_disk as a_full_disk
from tests.survival.trusted import build_place

RESULTS = Path(__file__).with_name("results")
KILLS, SIGNALS, DAMAGES, STEPS = 30, 20, 20, 3500
Lines = Iterator[str]


def kills(folder: Path) -> Lines:
    """kill -9 at random moments, for systems that carry more or less from task to task."""
    yield "## kill -9 at random moments"
    yield ""
    yield "One run is killed again and again, then let end, and compared with one that was left alone: theta, moments,"
    yield "counters and journal, bit by bit. A checkpoint after every meta-iteration."
    yield ""
    yield "| system | kills | meta-iterations | lost in all | most lost by one kill | half written, removed | differs |"
    yield "|---|---|---|---|---|---|---|"
    for system in SYSTEMS:
        facts = kill_at_random(folder / f"kills-{system}", system, KILLS, seed=len(system))
        yield f"| {system} | {' | '.join(str(value) for value in facts.values())} | nothing |"


def kills_in_save(folder: Path) -> Lines:
    """kill -9 at every point of a save."""
    yield "## kill -9 at chosen points of a save"
    yield ""
    yield "| point | kills | lost | differs after going on |"
    yield "|---|---|---|---|"
    for point in POINTS:
        for number in range(3):
            kill_in_save(folder / f"{point}-{number}", point)
        lost = "nothing" if POINTS[point][0] in AFTER else "one meta-iteration"
        yield f"| {point} | 3 | {lost} | nothing |"


def all_signals(folder: Path) -> Lines:
    """Signals in every phase of `abmll compare`."""
    yield "## SIGTERM, SIGINT and SIGUSR1 in every phase of `abmll compare`"
    yield ""
    yield "In turn, at a random call of the phase; each comparison is then finished by the same command, and its"
    yield "adapters and predictions compared with those of one that was left alone, byte by byte."
    yield ""
    yield "| phase | signals | exit code 128 + signal | left within 10 s | lost | differs |"
    yield "|---|---|---|---|---|---|"
    place = place_comparison(folder / "signals")
    for number, phase in enumerate(PHASES):
        facts = signals(place, phase, SIGNALS, seed=number)
        assert facts["slowest exit, s"] < 10
        yield f"| {phase} | {SIGNALS} | {SIGNALS} | {SIGNALS} | nothing | nothing |"
        for out in place.glob(f"{phase.replace(' ', '-')}-*"):
            shutil.rmtree(out)


def all_damage(folder: Path) -> Lines:
    """Damage to every file that is trusted."""
    yield "# Flipped bits, lost ends, edited values, missing and swapped files"
    yield ""
    yield f"Every file of every kind that is read again, {DAMAGES} times each way, and in the place of another of its"
    yield "kind. `refused`: an error that names it. `made again`: it is not used. `told`: a warning (there is no second"
    yield "copy of the journal). `the same`: what was changed means nothing (a space in JSON, say). In brackets why a"
    yield "file that is missing or another's is harmless."
    yield ""
    yield "| files | outcomes | used without a word |"
    yield "|---|---|---|"
    for kind, outcomes in damage(build_place(folder), DAMAGES).items():
        yield f"| {kind} | {', '.join(f'{what} {count}' for what, count in sorted(outcomes.items()))} | 0 |"


def training_memory(folder: Path) -> Lines:
    """Outer steps with flat memory."""
    yield f"## Memory over {STEPS:,} outer steps"
    yield ""
    yield "Resident memory of a process of its own, every 100 steps; warm-up ends when the memory of encoded questions"
    yield "is full (it is bounded), which takes 2,000 steps over 1,000 tasks of 12 rows."
    yield ""
    yield "| tasks | slope, last 1,500 steps, MiB per 1,000 | open files | MiB at the end, over 10 tasks' |"
    yield "|---|---|---|---|"
    ends = {}
    for tasks in (10, 1000):
        place = folder / f"memory-{tasks}"
        seen = train_and_watch(place, tasks, STEPS, 100)
        rate, ends[tasks], files = slope(seen[-15:]), seen[-1][1], {row[2] for row in seen}
        assert rate < 1.0, (tasks, rate)
        assert len(files) == 1
        yield f"| {tasks:,} | {rate:.2f} | constant | {ends[tasks] - ends[10]:+.1f} |"


def prediction_memory(folder: Path) -> Lines:
    """Evaluations of any size."""
    yield "## Peak memory of predicting, vocabulary of 128,000"
    yield ""
    yield "Resident memory relative to that for 400 questions, which fill a batch: what the program holds (the"
    yield "allocator gives freed tensors back at once), and under glibc's defaults, which keep freed blocks of up to"
    yield "32 MiB by chance."
    yield ""
    yield "| batch_tokens | questions | held by the program | with what glibc keeps |"
    yield "|---|---|---|---|"
    for tokens in (512, 1024, 2048):
        held, kept = (
            {n: peak_of_prediction(folder, n, 128_000, tokens, keep_freed=keep) for n in (400, 1000, 3000)}
            for keep in (False, True)
        )
        assert max(held.values()) < 1.05 * held[400], held
        yield from (f"| {tokens} | {n:,} | {held[n] / held[400]:.3f} | {kept[n] / kept[400]:.3f} |" for n in held)


def disks(folder: Path) -> Lines:
    """Full file systems."""
    yield "## A full disk"
    yield ""
    yield "A tmpfs of 2 MiB with so many bytes left, which `abmll train` fills; then room is made, and the same command"
    yield "goes on to its end."
    yield ""
    yield "| bytes left | times | exit code 1, one message | checkpoints that verify | half-written files at the end |"
    yield "|---|---|---|---|---|"
    place, rng = place_comparison(folder / "disks"), random.Random(0)
    for most in (0, 4096, 16_384, 32_768):
        for number in range(5):
            a_full_disk(rng.randint(0, most), place, folder / f"disk-{most}-{number}")
        yield f"| 0 to {most:,} | 5 | 5 | all | 0 |"


def ranks(folder: Path) -> Lines:
    """Signals to one of two ranks."""
    yield "## SIGTERM to one of two ranks"
    yield ""
    yield "| system | rank | times | both stopped at one step, 143 | hung | differs after going on |"
    yield "|---|---|---|---|---|---|"
    for system in test_ranks.SYSTEMS:
        for which in (0, 1):
            for number in range(10):
                place = folder / f"{system}-{which}-{number}"
                place.mkdir()
                test_ranks.test_trust_13_a_signal_to_one_rank_stops_both_at_the_same_step(system, which, place)
            yield f"| {system} | {which} | 10 | 10 | 0 | nothing |"


def terminal(folder: Path) -> Lines:
    """Ctrl-C in a terminal."""
    yield "## Ctrl-C in a terminal"
    yield ""
    yield "The real command in a pseudo-terminal, after it said so."
    yield ""
    yield "| command | pressed after | times | exit code 130 | tracebacks |"
    yield "|---|---|---|---|---|"
    place = place_comparison(folder / "terminal")
    for verb, after in (("train", "loading"), ("train", "meta-iteration"), ("compare", "predicted")):
        for number in range(5):
            values = ["training.iterations=300"] if after == "meta-iteration" else []
            code, shown = press(
                place, [verb, f"{verb}.yaml", *values, "-o", f"{verb}-{after}-{number}"], after, 0.1 * number
            )
            assert (code, "Traceback" in shown) == (130, False), shown
        yield f"| {verb} | {after} | 5 | 5 | 0 |"


CAMPAIGNS: dict[str, Callable[[Path], Lines]] = {
    "kills": kills,
    "saves": kills_in_save,
    "signals": all_signals,
    "damage": all_damage,
    "training": training_memory,
    "prediction": prediction_memory,
    "disks": disks,
    "ranks": ranks,
    "terminal": terminal,
}


def main(names: list[str]) -> None:
    """Run the named campaigns, or all."""
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    for name in names or CAMPAIGNS:
        began, lines = time.monotonic(), []
        with tempfile.TemporaryDirectory() as folder:
            for line in CAMPAIGNS[name](Path(folder)):
                print(line, flush=True)
                lines.append(line)
        (RESULTS / f"{name}.md").write_text("\n".join(lines).replace("## ", "# ", 1) + "\n", encoding="utf-8")
        print(f"({name}: {time.monotonic() - began:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
