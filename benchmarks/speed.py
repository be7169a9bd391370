"""How fast and how large our classes are, beside those of the peers, in the same run.

    python -m benchmarks.speed                      every table of docs/benchmarks.md
    python -m benchmarks.speed --only decoder click some of them; the others stay as they are

Weights are random and seeded, the same in all contestants, or those in the package (`sam_vit_t`).
Times are the best of several rounds in which the contestants take turns; peak memory is that of a
process of its own, above what it holds when the weights are loaded. GFLOP are the operations of the
products that PyTorch does; the machine's rate is that of a large matrix product in the same process
as the timing. Linux only.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.speeds import measure, page, report
from benchmarks.speeds.cases import CASES

RESULTS = Path(__file__).parent / "speeds" / "results.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--skip", nargs="*", default=[], help="contestants to leave out")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--child", choices=["time", "memory", "operations"], help=argparse.SUPPRESS)
    parser.add_argument("--contestants", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


@torch.no_grad()
def measured(options: argparse.Namespace) -> dict:
    """What the parent process asked for: times of some contestants, or another figure of one."""
    case = CASES[options.only[0]]
    calls = {name: case.makers[name]() for name in options.contestants}
    if options.child == "time":
        rate = measure.matrix_product_rate(case.dtype) if case.operations else 0.0
        return {"rate": rate, "seconds": measure.best_times(calls, options.rounds)}
    (call,) = calls.values()
    if options.child == "operations":
        return {"operations": measure.operations(call)}
    return measure.time_and_memory(call)


def compare(name: str, options: argparse.Namespace) -> dict:
    """All figures of a case."""
    case = CASES[name]
    names = [contestant for contestant in case.makers if contestant not in options.skip]

    def child(what: str, contestants: list[str], rounds: int = 1) -> dict:
        arguments = ["--child", what, "--only", name, "--rounds", str(rounds)]
        arguments += ["--contestants", *contestants]
        return measure.in_process("benchmarks.speed", arguments, options.threads)

    memory: dict[str, dict] = {}
    if case.memory and not options.no_memory:
        memory = {contestant: child("memory", [contestant]) for contestant in names}
    rounds = options.rounds or case.rounds
    if rounds or not memory:
        results = child("time", names, max(rounds, 1))
    else:
        results = {"seconds": {contestant: memory[contestant]["seconds"] for contestant in names}}
    counted = [contestant for contestant in names if contestant in case.operations]
    operations = {one: child("operations", [one])["operations"] for one in counted}
    return {**results, "memory": memory, "operations": operations}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measured(options)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = measure.machine(options.threads)
    for name in options.only:
        results[name] = {**compare(name, options), "machine": machine}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(report.table(name, results[name]))
    page.write_part("speed", report.part(results))
    if results.keys() >= report.SUMMARY.keys():
        page.write_part("speed", report.summary(results), page.README)


if __name__ == "__main__":
    main()
