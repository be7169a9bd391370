"""What the benchmarks of fine-tuning found, on the page about it."""

import json
from pathlib import Path

from benchmarks.speeds.page import table, write_part

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "how-to" / "fine-tune.md"
IMAGES = DOCS / "images"
LOSS, CELLS = "finetune-loss.png", "finetune-cells.png"
PROMPTS = {"click_1": "one click", "click_3": "three clicks", "box": "a box"}
SEARCHED = 8
"""Pictures in which the pipeline looks for everything."""
PIPELINE = {"pipeline": f"share that the pipeline finds, in {SEARCHED} of the pictures"}


def keep(name: str, results: dict) -> None:
    """Writes the results of one of the benchmarks, and its part of the page."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    write_part(name, TEXTS[name](results), PAGE)


def machine_text(machine: dict) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}"


def gain_text(results: dict) -> str:
    """The gain on the cells, with both pictures."""
    rows = [
        [meaning, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
        for name, meaning in (PROMPTS | PIPELINE).items()
        if name in results["before"]
        for before, after in [(results["before"][name], results["after"][name])]
    ]
    searched = ""
    if "pipeline" in results["before"]:
        searched = ', and the share of them that `pipeline("mask-generation")` finds at IoU 0.5'
    settings = ", ".join(f"{name}={json.dumps(v)}" for name, v in results["settings"].items())
    lines = [
        "## What it brings",
        "",
        f"Drawn cells, which the model never saw. The mode `{results['mode']}` learnt from "
        f"{results['images']} pictures for {results['seconds'] / 60:.1f} minutes "
        f"({results['steps']} steps, encoding included; {machine_text(results['machine'])}), with "
        f"`{settings}` instead of the defaults. Mean IoU of the {results['before']['objects']} "
        f"objects in other pictures{searched}:",
        "",
        table([f"`{results['model']}`", "before", "after", ""], rows),
        "",
        f"![Cells outlined after one click each, before and after](../images/{CELLS})",
        "",
        f"![The loss falls](../images/{LOSS})",
        "",
        "`python -m benchmarks.finetune` draws the cells, trains, and measures.",
    ]
    return "\n".join(lines)


def memory_text(results: dict) -> str:
    """The most memory that fine-tuning takes, by what learns."""
    rows = [
        [f"`{mode}`", f"{figures['peak'] / 1e9:.1f} GB", f"{figures['seconds']:.0f} s"]
        for mode, figures in results["modes"].items()
    ]
    height, width = results["input_size"]
    lines = [
        "## Memory",
        "",
        f"`finetune` with the full `{results['model']}` for {results['steps']} steps, reading, "
        f"checkpoints and saving too: {height} x {width} pixels, {results['objects']} objects, "
        f"{results['clicks']} corrections, with activation checkpointing where the image encoder "
        f"learns, float32 on the processor ({machine_text(results['machine'])}):",
        "",
        table(["mode", "most memory", "time a step"], rows),
        "",
        "`python -m benchmarks.finetune_memory` measures it.",
    ]
    return "\n".join(lines)


TEXTS = {"finetune": gain_text, "finetune_memory": memory_text}
"""What each benchmark's results say on the page, by the benchmark's name."""
