"""README.md of this folder, written from `results.json.gz`."""

from collections.abc import Mapping, Sequence
from typing import Any

from abmll.metrics.betting import HORIZON
from abmll.report.tables import TextTable, markdown
from experiments.size.watching import CHANGE, LABELS

HEAD = """# How often a test is wrong

Written by `python -m experiments.size report`. In every simulated world two systems do not differ on average; a test at
.05 should find a difference in 5 % of them, and no test of ours may do so in more than 6 % ({most} of {worlds:,}).

    python -m experiments.size components PACKED                     # components.json: what scatters, how far
    python -m experiments.size run                                        # results.json.gz and this page, half an hour

**Components** are the standard deviations of a paired difference that training seeds, adaptation draws, questions and
their interactions make, by the analysis of variance of the predictions stored in
`experiments/unseen/results/smollm2`: five seeds, five draws, eight tasks; median and largest over the 28 pairs of
eight meta-trained systems, and one pair that was not meta-trained (the plain model adapted, and examples in the
prompt). Effects are drawn from normal distributions, 100 questions a task.

**The test** is `abmll.metrics.paired.paired_test`: the contributions of seeds, draws and questions added up, each
against Student's t with its own degrees of freedom (Cochran and Cox 1950). Beside it: the crossed percentile bootstrap
that stood in its place, the same studentised (for two designs: it is slow), and a t-test on the seeds' means, which
knows nothing of draws and questions. Where a level was measured once the test gives no p (-). Numbers are rejections in
{worlds:,} worlds.
"""
AFTER = """
What follows from it, in the library:

- **One training seed gives no p**: the bootstrap rejects {one_seed} of {worlds:,} there. Neither does one draw of
  examples, unless tasks are drawn too.
- **Two systems that were not meta-trained** may have one: their training seed decides only where ten steps start, and
  the measured share of that is small.
- **Few seeds are asked for more.** The crossed bootstrap rejects up to {three} at three seeds and {five} at five, and
  studentised {student}. A t-test over seeds rejects up to {over}: all seeds share the draws and the questions, so it
  takes their scatter for a difference of the systems.
- **Groups** (questions on one passage) are taken as one each. Counted one by one, five of a kind at a correlation of
  .6, they make up to {ignored} errors of {worlds:,}, most where questions are all that scatters much.
- **No test knows of seeds that fall apart** where none of those measured did: with one seed in four losing .1, three
  seeds find a difference far too often. Look at each seed.
"""
EVERYDAY = """
## The check of `abmll adapt`

Rows on which adapting changes nothing on average: of {worlds:,} sets, how often the check says that it helps, or hurts.
"As good as pretrained": the run and the pretrained model know the same and differ by noise, all else is worse. "Label
shares": the run learns how often each label came in the other folds, by chance. It may be wrong in 5 % either way. In
clusters of five the noise correlates by .6; they are counted as clusters, and as rows.
"""
CHECKS = """
The same with all rows of the table (TF-IDF, sentence vectors, the prompt, the temperature), {sets} sets each: three
labels; every system states the exact posterior of what it knows, only the run and a fresh LoRA are too sure; the run's
temperature is learned in the check, by the weak prior or by that of a new LoRA on a base model. The best rival has .7
nats, a gain is .2. "Alike" is how much of a row's difficulty
systems share: at .85 the NLLs of two systems correlate by .8, at .7 by .64; those of TF-IDF and of sentence vectors
did by .74 on real texts (the median of 25 draws of 20 to 60 rows from seven sets; half of them between .68 and .86).
"Helps" is about the run with its temperature, against seven rivals, and may be wrong in 5 %: at most 27 of 400
by chance. "Advised" is the choice with the lowest expected NLL; how often it is within .03
nats of the best, which here is known.
"""
AFTER_CHECKS = """
- A gain of .2 nats over the best rival is told in four of five cases by 60 rows where systems find the same
  rows hard, in fewer where they do not, and seldom by 24 rows: there it takes a larger one.
- The advice is a choice that need not be sure. It is near the best here as its favourite, the run with its temperature,
  is among the best in all of these worlds: they say nothing of how fast it leaves a run that is bad.
"""
PROMISE = """
## The promise of `--abstain-below-risk`

At most 10 % of the answered rows wrong, promised at 90 %: of {repeats} repeats, how often it was kept (or nothing was
promised), and how often something was. It must be kept in 360, chance allowed for in 352. Where the rows to come are
harder than those held back (an error rate of 20 in place of 2 %) it fails, as it must: nothing in the held-back rows
can tell.
"""
WATCH = """
## `abmll watch`

Streams of labelled answers, {streams} each, against a promised risk r; `abmll.metrics.betting` has the test. "False":
alarms within {labels:,} labels where the rate is r itself, at most 5 % of them by its mathematics; chance allowed for,
27 of 400. "Doubled": alarms within {horizon} labels at twice r; beside it what the most powerful of all tests at 5 %
gets, which knows the rate and looks once (Neyman and Pearson 1933). "Trebled": the same at three times r. "Half more":
alarms within {labels:,} labels at 1.5 r. "Late": labels from a change, r to 2 r after {change} labels, to the alarm
(the median). Last, MAPIE 1.6's `RiskMonitoring` at the same level, with r as its threshold, on the same streams.
"""
AFTER_WATCH = """
- At .1 and .2 a doubled risk is told within {horizon} labels in four of five streams or more. **At .05 no test can do
  that**: the most powerful one does it in 63 %, and this one in {few} of {streams}. Where so small a share was
  promised, it takes more labels.
- MAPIE's bound is for any numbers in [0, 1]. For answers that are right or wrong it needs far more labels than bets on
  them do, so it is not what `abmll watch` goes by.
"""
TESTS = (
    "the test",
    "the test, tasks drawn",
    "the test, groups ignored",
    "crossed bootstrap",
    "studentised bootstrap",
    "t-test over seeds",
)


def readme(results: Mapping[str, Any]) -> str:
    """The page."""
    worlds, rows = (
        results["worlds"],
        [r for r in results["comparisons"] if r["meta_trained"] and not r["design"]["fallen"]],
    )
    one = [r["rejected"]["crossed bootstrap"] for r in rows if r["design"]["seeds"] == 1]
    usual = [r for r in rows if r["design"]["draws"] == 5 and r["design"]["cluster"] == 1]
    numbers = {
        "one_seed": f"{min(one)} to {max(one)}",
        "three": max(r["rejected"]["crossed bootstrap"] for r in usual if r["design"]["seeds"] == 3),
        "five": max(r["rejected"]["crossed bootstrap"] for r in usual if r["design"]["seeds"] == 5),
        "student": " and ".join(str(n) for r in usual if (n := r["rejected"].get("studentised bootstrap"))),
        "over": max(r["rejected"]["t-test over seeds"] or 0 for r in usual),
        "ignored": max(r["rejected"].get("the test, groups ignored") or 0 for r in results["comparisons"]),
    }
    parts = [
        HEAD.format(worlds=worlds, most=round(0.06 * worlds)),
        markdown(_comparisons(results["comparisons"])),
        AFTER.format(worlds=worlds, **numbers),
        EVERYDAY.format(worlds=worlds),
        markdown(_everyday(results["everyday"])),
        CHECKS.format(sets=results["checks"][0]["sets"]),
        markdown(_checks(results["checks"])),
        AFTER_CHECKS,
        PROMISE.format(repeats=results["promises"][0]["repeats"]),
        markdown(_promises(results["promises"])),
        WATCH.format(streams=results["watches"][0]["streams"], labels=LABELS, horizon=HORIZON, change=CHANGE),
        markdown(_watches(results["watches"])),
        AFTER_WATCH.format(horizon=HORIZON, **_of_smallest(results["watches"])),
    ]
    return "\n".join(parts) + "\n"


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    table = []
    for row in rows:
        design = row["design"]
        notes = [f"clusters of {design['cluster']}"] if design["cluster"] > 1 else []
        notes += ["seeds fall apart"] if design["fallen"] else []
        counts = tuple(_count(row["rejected"].get(test)) for test in TESTS)
        sizes = tuple(str(design[name]) for name in ("seeds", "draws", "tasks"))
        table.append((", ".join([row["components"], *notes]), *sizes, *counts))
    return TextTable("", ("Components", "Seeds", "Draws", "Tasks", *TESTS), tuple(table))


def _everyday(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    table = [
        (
            row["world"] + ("" if row["groups"] else ", counted as rows"),
            str(row["rows"]),
            str(row["helps"]),
            str(row["hurts"]),
        )
        for row in rows
    ]
    return TextTable("", ("Rows", "Number", "helps", "hurts"), tuple(table))


def _checks(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    counts = ("rows", "helps", "hurts", "advised_within_03")
    table = [(row["world"], row["prior"], f"{row['shared']:g}", *(str(row[name]) for name in counts)) for row in rows]
    return TextTable("", ("World", "Prior", "Alike", "Number", "helps", "hurts", "Advised within .03"), tuple(table))


def _promises(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    table = [(row["world"], str(row["held_back"]), str(row["kept"]), str(row["made"])) for row in rows]
    return TextTable("", ("Rows", "Held back", "Kept", "Made"), tuple(table))


def _watches(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    columns = ("false", "doubled", "bound", "trebled", "half_more", "late")
    mapie = [row["mapie"] or {} for row in rows]
    theirs = [tuple(_count(of.get(name)) for name in ("false", "doubled")) for of in mapie]
    ours = [(f"{row['risk']:g}", *(f"{row[name]:g}" for name in columns)) for row in rows]
    table = [a + b for a, b in zip(ours, theirs, strict=True)]
    head = ("r", "False", "Doubled", "at most", "Trebled", "Half more", "Late", "MAPIE: false", "MAPIE: doubled")
    return TextTable("", head, tuple(table))


def _of_smallest(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {"few": rows[0]["doubled"], "streams": rows[0]["streams"]}


def _count(rejected: int | None) -> str:
    return "-" if rejected is None else str(rejected)
