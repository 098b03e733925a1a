"""Recorded lines as Markdown tables: ``python -m benchmarks.table [FILE ...] [--all]``.

Only lines of one commit and one machine are put together. Of each file the newest such group is
shown, or with ``--all`` every group, newest first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.record import RESULTS, ROOT

Line = Mapping[str, Any]
METRICS = ("acc", "nmi", "ari")


def read(path: Path) -> list[list[Line]]:
    """Lines grouped by commit and machine, newest group first, seeds in order.

    A seed recorded twice in a group counts once, with its last line.
    """
    groups: dict[tuple[str, str], dict[Any, Line]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        key = (line["commit"], json.dumps(line["machine"], sort_keys=True))
        group = groups.pop(key, {})
        groups[key] = group | {line["seed"]: line}  # put last: the newest group ends the mapping
    return [
        sorted(group.values(), key=lambda line: -1 if line["seed"] is None else line["seed"])
        for group in reversed(groups.values())
    ]


def render(lines: Sequence[Line]) -> str:
    """Render the lines of one group: where from, scores by method, evidence, seconds by phase."""
    first = lines[0]
    machine = first["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores"
    if machine["gpu"]:
        where += f", {machine['gpu']}"
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items() if number)
    seeds = ", ".join(str(line["seed"]) for line in lines)
    parts = [
        f"### {first['name']}",
        f"Commit `{first['commit'][:12]}`, seeds {seeds}; {where}; {versions}.",
    ]
    if all("scores" in line["result"] for line in lines):
        parts.append(_scores([line["result"]["scores"] for line in lines]))
    if all("evidence" in line["result"] for line in lines):
        parts.append(_evidence(lines))
    phases = dict.fromkeys(phase for line in lines for phase in line["seconds"])
    rows = [
        [phase, *summary([line["seconds"].get(phase) for line in lines], 1)] for phase in phases
    ]
    rows.append(["peak memory, MB", *summary([line["peak_memory_mb"] for line in lines], 0)])
    parts.append(_table(["seconds", "n", "mean ± sd", "min", "max"], rows))
    return "\n\n".join(parts)


def summary(values: Iterable[float | None], digits: int) -> list[str]:
    """Return n, mean ± sample standard deviation, min and max of the values that are there."""
    found = [value for value in values if value is not None]
    if not found:
        return ["0", "", "", ""]
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    low, high = (f"{value:.{digits}f}" for value in (min(found), max(found)))
    return [str(len(found)), f"{mean(found):.{digits}f}{spread}", low, high]


def _scores(scores: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """One row for each method, mean ± sd and min for each metric."""
    rows = []
    for method in scores[0]:
        columns = [summary([score[method].get(name) for score in scores], 4) for name in METRICS]
        rows.append([method, columns[0][0], *(cell for column in columns for cell in column[1:3])])
    head = [cell for name in METRICS for cell in (f"{name.upper()}, mean ± sd", "min")]
    return _table(["method", "n", *head], rows)


def _evidence(lines: Sequence[Line]) -> str:
    """One row for each seed: averages would hide the one where nothing happened."""
    rows = []
    for line in lines:
        item = line["result"]["evidence"]
        rows.append(
            [
                str(line["seed"]),
                str(item["n_iter"]),
                str(item["refreshes"]),
                *([f"{item['changed'][i]:.4f}" for i in (0, -1)] if item["changed"] else ["", ""]),
                f"{item['labels_moved']:.4f}",
                f"{item['encoder_change']:.4f}",
            ]
        )
    head = ["seed", "steps", "refreshes", "changed, first", "changed, last"]
    return _table([*head, "moved since init", "encoder change"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.table", description=__doc__.splitlines()[0]
    )
    parser.add_argument("files", nargs="*", type=Path, help="by default all of benchmarks/results")
    parser.add_argument("--all", action="store_true", help="older commits and other machines too")
    args = parser.parse_args(argv)
    files = args.files or sorted((ROOT / RESULTS).glob("*.jsonl"))
    groups = [group for path in files for group in read(path)[: None if args.all else 1]]
    if not groups:
        print("nothing recorded yet; run: make bench", file=sys.stderr)
        return 1
    print("\n\n".join(render(group) for group in groups))
    return 0


if __name__ == "__main__":
    sys.exit(main())
