"""The figures of the cases as Markdown."""

from . import page
from .cases import CASES, Case, Goal

_FIGURES = {
    "seconds": "time",
    "above": "peak memory above the weights",
    "peak": "peak memory with the process",
}


def figure(results: dict, kind: str, contestant: str) -> float | None:
    """Seconds, or bytes of one of the memory's kinds; None if it was not measured."""
    if kind == "seconds":
        return results["seconds"].get(contestant)
    return results["memory"].get(contestant, {}).get(kind)


def table(name: str, results: dict) -> str:
    """One case: its figures, and what is asked beside what was reached."""
    case = CASES[name]
    contestants = [*results["seconds"]]
    rows = [_row(results, contestant, contestants[0]) for contestant in contestants]
    heads = ["", "seconds", "ours / theirs", "GFLOP", "of the machine's rate"]
    heads += ["peak memory above the weights", "ours / theirs"]
    return "\n".join([f"### {case.title}", "", page.table(heads, rows), "", *_goals(case, results)])


def _row(results: dict, contestant: str, first: str) -> list[str]:
    seconds, above = results["seconds"][contestant], figure(results, "above", contestant)
    operations = results.get("operations", {}).get(contestant)
    cells = [contestant, f"{seconds:.3g}", _ratio(results, "seconds", first, contestant)]
    cells += ["", ""]
    if operations:
        cells[3:] = [f"{operations / 1e9:.0f}", f"{operations / seconds / results['rate']:.0%}"]
    if above is None:
        return [*cells, "", ""]
    peak = figure(results, "peak", contestant) or 0
    cells.append(f"{above / 1e9:.2f} GB ({peak / 1e9:.2f} in all)")
    return [*cells, _ratio(results, "above", first, contestant)]


def _ratio(results: dict, kind: str, first: str, contestant: str) -> str:
    ours, theirs = (figure(results, kind, one) for one in (first, contestant))
    return f"{ours / theirs:.2f}" if ours and theirs and first != contestant else ""


def _goals(case: Case, results: dict) -> list[str]:
    """A line for each goal whose figures were measured."""
    lines = [line for goal in case.goals if (line := _goal(goal, results))]
    return [*lines, ""] if lines else []


def _goal(goal: Goal, results: dict) -> str:
    ours, what = figure(results, goal.figure, goal.of), f"- {_FIGURES[goal.figure]}, {goal.of}"
    if ours is None:
        return ""
    if goal.against is None:
        unit, size = ("s", 1.0) if goal.figure == "seconds" else ("GB", 1e9)
        return f"{what}: {ours / size:.2f} {unit}, asked: at most {goal.at_most / size:g} {unit}"
    theirs = figure(results, goal.figure, goal.against)
    if theirs is None:
        return ""
    return f"{what} / {goal.against}: {ours / theirs:.2f}, asked: at most {goal.at_most:g}"


SUMMARY = {
    "encoder": "encode an image of 1024 x 1024",
    "decoder": "64 clicks, three masks each",
    "click": "one click into an image of 1800 x 1200",
    "everything": "everything in it, 1024 clicks, with the encoder",
}


def summary(results: dict) -> str:
    """A few rows for the README: the first contestant of a case beside the first of the peers."""
    rows = []
    for name, work in SUMMARY.items():
        case, goal = results[name], CASES[name].goals[0]
        ours, theirs = goal.of, str(goal.against)
        seconds = [f"{case['seconds'][one]:.3g} s" for one in (ours, theirs)]
        ratios = [_ratio(case, figure, ours, theirs) for figure in ("seconds", "above")]
        rows.append([work, *seconds, theirs, *ratios])
    heads = ["`sam_vit_b`, fp32", "ours", "the other", "which is", "time", "memory"]
    machine = results[next(iter(SUMMARY))]["machine"]
    where = f"{machine['processor']}, {machine['threads']} threads, PyTorch {machine['torch']}"
    return f"{page.table(heads, rows)}\n\nMeasured by `python -m benchmarks.speed` on an {where}."


def part(results: dict) -> str:
    """The part `speed` of docs/benchmarks.md: the machine, and a table for each case.

    A case that was measured elsewhere, or when the machine was slower, says what differs.
    """
    names = [name for name in CASES if name in results]
    usual = results[names[0]]["machine"]
    tables = []
    for name in names:
        title, text = table(name, results[name]).split("\n", maxsplit=1)
        machine = results[name]["machine"]
        other = [f"{field} {value}" for field, value in machine.items() if value != usual[field]]
        apart = f"\nMeasured apart: {', '.join(other)}.\n" if other else ""
        tables.append(f"{title}\n{apart}{text}")
    return "\n".join([page.machine_lines(usual), "", *tables])
