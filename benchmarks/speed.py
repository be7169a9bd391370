"""How fast and how large our classes are, beside those of the peers, in the same run.

    python -m benchmarks.speed                      every table of docs/benchmarks.md
    python -m benchmarks.speed --only decoder click some of them; the others stay as they are

Weights are random and seeded, the same in all contestants, or those in the package (`sam_vit_t`).
Times are the best of several rounds in which the contestants take turns; peak memory is that of a
process of its own, above what it holds when the weights are loaded. Linux only.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.speeds import measure, report
from benchmarks.speeds.cases import CASES

RESULTS = Path(__file__).parent / "speeds" / "results.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--skip", nargs="*", default=[], help="contestants to leave out")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--child", choices=["time", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--contestants", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


@torch.no_grad()
def measured(options: argparse.Namespace) -> dict:
    """What the parent process asked for: times of some contestants, or the memory of one."""
    case = CASES[options.only[0]]
    calls = {name: case.makers[name]() for name in options.contestants}
    if options.child == "time":
        return measure.best_times(calls, options.rounds)
    (call,) = calls.values()
    return measure.time_and_memory(call)


def compare(name: str, options: argparse.Namespace) -> dict:
    """All figures of a case."""
    case = CASES[name]
    names = [contestant for contestant in case.makers if contestant not in options.skip]
    rounds = options.rounds or case.rounds
    times = measure.in_process(name, "time", names, options.threads, rounds)
    memory = {}
    if case.memory and not options.no_memory:
        for contestant in names:
            memory[contestant] = measure.in_process(
                name, "memory", [contestant], options.threads, 1
            )
    return {"seconds": times, "memory": memory}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measured(options)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["machine"] = measure.machine(options.threads)
    for name in options.only:
        results.setdefault("cases", {})[name] = compare(name, options)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(report.table(name, results["cases"][name]))
    PAGE.write_text(report.page(results))


if __name__ == "__main__":
    main()
