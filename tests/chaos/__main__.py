"""The kill loop as a program, with a line of progress and a report.

python -m tests.chaos --seconds 600 --seed 7 --report build/chaos
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import orjson

from tests.chaos.judge import Verdict
from tests.chaos.kill_loop import KillLoop, Plan


def table(plan: Plan, verdict: Verdict) -> str:
    """The report, as a Markdown table."""
    rows = [("seed", plan.seed), *sorted(verdict.counts.items()), ("faults found", len(verdict.faults))]
    return "\n".join(["| What | How many |", "| --- | ---: |", *(f"| {name} | {count} |" for name, count in rows)])


FLOOR: Final = {
    "kills": 50,
    "takeovers": 50,
    "writes refused": 5,
    "redis kills": 5,
    "API restarts": 3,
    "zombies": 10,
    "decisions": 100,
    "answers refused": 20,
}


def _tell(line: str) -> None:
    sys.stderr.write(f"\r{line:<150.150}")
    sys.stderr.flush()


async def _loop(plan: Plan) -> Verdict:
    async with KillLoop(plan, _tell) as loop:
        return await loop.run()


def _report(plan: Plan, verdict: Verdict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"plan": asdict(plan), "counts": dict(verdict.counts), "faults": verdict.faults}
    (folder / "kill-loop.json").write_bytes(orjson.dumps(fields, option=orjson.OPT_INDENT_2))
    (folder / "kill-loop.md").write_text(table(plan, verdict) + "\n")


def main() -> None:
    """The loop as a program. Its exit code is 0 when it finds no faults, or those of a sabotage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sabotage", default="", help="break this on purpose; the loop then has to find faults")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    share = args.seconds / 120
    floor = {name: int(least * min(share, 1)) for name, least in FLOOR.items()} if not args.sabotage else {}
    plan = Plan(args.seconds, args.seed, floor=floor, sabotage=args.sabotage)
    if args.sabotage == "fencing":  # only zombies need fencing
        plan = replace(plan, kill=(5.0, 8.0), freeze=(0.2, 1.0), freezers=2)
    verdict = asyncio.run(_loop(plan))
    sys.stdout.write("\n".join(["", table(plan, verdict), *verdict.faults[:20], ""]))
    if args.report is not None:
        _report(plan, verdict, args.report)
    sys.exit(bool(verdict.faults) is not bool(plan.sabotage))


main()
