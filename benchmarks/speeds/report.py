"""The figures as Markdown."""

from .cases import CASES


def _ratio(ours: float, theirs: float, goal: float | None) -> str:
    asked = "" if goal is None else f" (asked: {goal:g})"
    return f"{ours / theirs:.2f}{asked}"


def table(name: str, results: dict) -> str:
    """One case: seconds, the share of each peer's time that ours takes, memory likewise."""
    case, seconds, memory = CASES[name], results["seconds"], results["memory"]
    first = next(iter(seconds))
    lines = [
        f"### {case.title}",
        "",
        "| | seconds | ours / theirs | peak memory above the weights | ours / theirs |",
        "|---|---|---|---|---|",
    ]
    for contestant, time in seconds.items():
        cells = [contestant, f"{time:.3g}", "", "", ""]
        if contestant != first:
            cells[2] = _ratio(seconds[first], time, case.time_goals.get(contestant))
        if contestant in memory:
            above = memory[contestant]["above"]
            cells[3] = f"{above / 1e9:.2f} GB ({memory[contestant]['peak'] / 1e9:.2f} in all)"
            if contestant != first:
                goal = case.memory_goals.get(contestant)
                cells[4] = _ratio(memory[first]["above"], above, goal)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def page(results: dict) -> str:
    """docs/benchmarks.md."""
    machine = "\n".join(f"- {name}: {value}" for name, value in results["machine"].items())
    tables = "\n".join(
        table(name, results["cases"][name]) for name in CASES if name in results["cases"]
    )
    return f"""# Benchmarks

Every figure that this site, the README or a model's card quotes comes from a script in the
repository's folder `benchmarks`, which names the machine it ran on:

```console
make bench
```

How good the masks of `sam_vit_t` are stands beside its weights and
[on its card](https://huggingface.co/segment-anything-transformers/sam_vit_t).

## Speed and memory

This part is written by `python -m benchmarks.speed`. Weights are random and seeded, the same in all
that are compared, or those in the package (`sam_vit_t`). Seconds are the best of several rounds in
which the contestants take turns in one process; memory is the peak of a process of its own.

{machine}

{tables}"""
