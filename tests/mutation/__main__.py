"""`make mutants`: draw mutants of each group, let the tests kill them, write `results/NAME.json` and `results/NAME.md`.

    python -m tests.mutation --seed 1 --each 60 --name tuned

A mutant counts as killed if a test fails, does not end in time, or if `reasons.toml` has the rule by which it is
equivalent. Exits with 1 if fewer than `least` of `groups.toml` are in a group, or a survivor has no reason.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from tests.mutation.groups import HERE, Group, read_groups, read_reasons
from tests.mutation.mutate import DETECTED, Mutant, describe, draw, lay_out, names_in, run, verdicts

RESULTS = HERE / "results"


def main(words: Sequence[str]) -> int:
    """Run what the words ask for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--seed", type=int, default=1, help="of the draw")
    parser.add_argument("--each", type=int, default=60, help="mutants of each group")
    parser.add_argument("--groups", help="names, separated by commas, or none; all if it is not given")
    parser.add_argument("--name", default="score", help="of the files of results")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that run at once")
    parser.add_argument("--again", action="store_true", help="run those alone that lived before: tests were added")
    asked = parser.parse_args(words)
    values, groups = read_groups()
    chosen = [group for group in groups if not asked.groups or group.name in asked.groups.split(",")]
    rows = _earlier(asked.name)
    for group in chosen:
        rows[group.name] = _run_group(group, values, asked)
        print(_line_of(group, rows[group.name]), flush=True)
        _write(asked.name, groups, rows)
    _write(asked.name, groups, rows)  # without a group: what reasons.toml says now
    short = [g.name for g in chosen if not g.reported and rows[g.name]["score"] < values["least"]]
    silent = [s["at"] for group in chosen for s in rows[group.name]["survivors"] if not s["reason"]]
    print(f"fewer than {values['least']:.0%}: {', '.join(short) or 'none'}; survivors without a reason: {len(silent)}")
    return int(bool(short or silent))


def _earlier(name: str) -> dict[str, dict[str, Any]]:
    """Groups that the file of results has already; each says by which seed it was drawn."""
    path = RESULTS / f"{name}.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {group: _with_reasons(row) for group, row in values.get("groups", {}).items()}


def _run_group(group: Group, values: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    folder = lay_out(group, values["beside"], values["without"])
    everything = names_in(folder, group)
    names = draw(group, everything, asked.each, asked.seed)
    memory = folder / f"verdicts-{asked.seed}.json"
    known = json.loads(memory.read_text(encoding="utf-8")) if asked.again and memory.exists() else {}
    found = {name: known[name] for name in names if known.get(name) in DETECTED}
    if rest := [name for name in names if name not in found]:
        run(folder, rest, asked.jobs)
        found |= verdicts(folder, group, rest)
    memory.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    left = [name for name in names if found[name] not in DETECTED]
    return _row(
        asked.seed, len(everything), found, [_survivor(m, found[m.name]) for m in describe(folder, group, left)]
    )


def _row(seed: int, population: int, found: dict[str, str], survivors: list[dict[str, Any]]) -> dict[str, Any]:
    killed = sum(status in DETECTED for status in found.values())
    timeouts = sum(status == "timeout" for status in found.values())
    counts = {"seed": seed, "population": population, "drawn": len(found), "killed": killed, "timeouts": timeouts}
    return _with_reasons({**counts, "survivors": survivors})


def _with_reasons(row: dict[str, Any]) -> dict[str, Any]:
    """A group's row with the reasons that are known now, and the counts and the score that follow."""
    survivors = []
    for survivor in row["survivors"]:
        known = next((r for r in read_reasons() if _same(r, survivor)), {})
        reason = known.get("equivalent", known.get("left", ""))
        survivors.append({**survivor, "equivalent": "equivalent" in known, "reason": reason})
    equivalent = sum(survivor["equivalent"] for survivor in survivors)
    score = round((row["killed"] + equivalent) / row["drawn"], 4)
    counts = {"equivalent": equivalent, "survived": len(survivors) - equivalent, "score": score}
    return {**row, **counts, "survivors": survivors}


def _survivor(mutant: Mutant, status: str) -> dict[str, Any]:
    return {
        "at": f"{mutant.file}:{mutant.line}",
        "function": mutant.function,
        "was": mutant.was,
        "now": mutant.now,
        "status": status,
    }


def _same(reason: dict[str, Any], survivor: dict[str, Any]) -> bool:
    file = survivor["at"].partition(":")[0]
    return (reason["file"], reason["was"], reason["now"]) == (file, survivor["was"], survivor["now"])


def _line_of(group: Group, row: dict[str, Any]) -> str:
    return (
        f"| {group.title} | {row['seed']} | {row['population']} | {row['drawn']} | {row['killed']} | "
        f"{row['timeouts']} | {row['equivalent']} | {row['survived']} | {100 * row['score']:.1f} |"
    )


def _write(name: str, groups: Sequence[Group], rows: dict[str, dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"groups": rows}, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    lines = [
        f"Written by `python -m tests.mutation --name {name}` with the seeds of the table.",
        "",
        "| group | seed | mutants | drawn | killed | of them timeouts | equivalent | survived | score % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(_line_of(group, rows[group.name]) for group in groups if group.name in rows),
    ]
    for group in groups:
        if group.name in rows and rows[group.name]["survivors"]:
            lines += ["", f"## {group.title}", "", *map(_told, rows[group.name]["survivors"])]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _told(survivor: dict[str, Any]) -> str:
    kind = "equivalent" if survivor["equivalent"] else survivor["status"]
    reason = survivor["reason"] or "a gap"
    return f"- {survivor['at']} ({kind}) `{survivor['was']}` -> `{survivor['now']}`: {reason}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
