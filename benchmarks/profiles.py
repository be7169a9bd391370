"""Where the time goes in what misses its goal: operators, most expensive first.

    python -m benchmarks.profiles

Each case runs in a process of its own under its framework's profiler. The sums of a framework that
runs operators side by side exceed the time that passes.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.speeds import measure, page
from benchmarks.speeds.cases import CASES

MODULE = "benchmarks.profiles"
SHOWN = 8
Operators = dict[str, tuple[float, int]]  # by name seconds and number of calls


def of_torch(call: measure.Call) -> Operators:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    averages = profile.key_averages()
    return {one.key: (one.self_cpu_time_total / 1e6, one.count) for one in averages}


def of_tensorflow(call: measure.Call) -> Operators:
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        call()
        tf.profiler.experimental.stop()
        [file] = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    seconds: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            _, _, kind = plane.event_metadata[event.metadata_id].name.partition(":")
            if kind.isidentifier():
                seconds[kind] += event.duration_ps / 1e12
                counts[kind] += 1
    return {kind: (seconds[kind], counts[kind]) for kind in seconds}


PROFILERS: Mapping[str, Callable[[measure.Call], Operators]] = {
    "click": of_torch,
    "keras-encoder": of_tensorflow,
    "keras-decoder": of_tensorflow,
}


@torch.no_grad()
def measured(name: str) -> dict:
    """The seconds and the operators of a case's first contestant, which is ours."""
    make = next(iter(CASES[name].makers.values()))
    call = make()
    seconds = measure.best_times({name: call}, 5)[name]
    return {"seconds": seconds, "operators": PROFILERS[name](call)}


def table(title: str, results: dict) -> str:
    """The operators that take most, and the others together."""
    ordered = sorted(results["operators"].items(), key=lambda item: -item[1][0])
    rows = [(name, *figures) for name, figures in ordered[:SHOWN]]
    rest = [figures for _, figures in ordered[SHOWN:]]
    rows.append(("others", sum(seconds for seconds, _ in rest), sum(count for _, count in rest)))
    cells = [[name, f"{1e3 * seconds:.3g}", str(count)] for name, seconds, count in rows]
    between = results["seconds"] - sum(seconds for _, seconds, _ in rows)
    if between > 0:
        cells.append(["between operators: Python, numpy", f"{1e3 * between:.3g}", ""])
    return "\n".join(
        [
            f"### {title}",
            "",
            f"{1e3 * results['seconds']:.3g} ms.",
            "",
            page.table(["operator", "ms in all its calls", "calls"], cells),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=PROFILERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measured(options.child)))
        return
    tables = [
        table(CASES[name].title, measure.in_process(MODULE, ["--child", name], options.threads))
        for name in PROFILERS
    ]
    machine = page.machine_lines(measure.machine(options.threads))
    page.write_part("profiles", "\n".join([machine, "", *tables]))


if __name__ == "__main__":
    main()
