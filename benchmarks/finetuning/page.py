"""What the benchmarks of fine-tuning found, on the page about it."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "how-to" / "fine-tune.md"
IMAGES = DOCS / "images"
LOSS, CELLS = "finetune-loss.png", "finetune-cells.png"
BEGIN = "<!-- what benchmarks/finetune.py and benchmarks/finetune_memory.py found -->\n"
END = "<!-- until here -->\n"
PROMPTS = {"click_1": "one click", "click_3": "three clicks", "box": "a box"}


def keep(name: str, results: dict) -> None:
    """Writes the results of one of the benchmarks, and the page's part from those of both."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    write_part(PAGE)


def write_part(page: Path) -> None:
    """Replaces what stands between the marks on a page by what was measured last."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = []
    for name, text in (("finetune", gain_text), ("finetune_memory", memory_text)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts.append(text(json.loads(path.read_text())))
    page.write_text(before + BEGIN + "\n" + "".join(part + "\n" for part in parts) + END + after)


def machine_text(machine: dict) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}"


def gain_text(results: dict) -> str:
    """The gain on the cells, with both pictures."""
    rows = [
        f"| {meaning} | {before:.2f} | {after:.2f} | {after - before:+.2f} |"
        for name, meaning in PROMPTS.items()
        for before, after in [(results["before"][name], results["after"][name])]
    ]
    lines = [
        "## What it brings",
        "",
        f"Drawn cells, which the model never saw. The mode `{results['mode']}` learnt from "
        f"{results['images']} pictures for {results['seconds'] / 60:.1f} minutes "
        f"({results['steps']} steps, encoding included; {machine_text(results['machine'])}). Mean "
        f"IoU of the {results['before']['objects']} objects in other pictures:",
        "",
        f"| `{results['model']}` | before | after | |",
        "|---|---|---|---|",
        *rows,
        "",
        f"![Cells outlined after one click each, before and after](../images/{CELLS})",
        "",
        f"![The loss falls](../images/{LOSS})",
        "",
        "`python -m benchmarks.finetune` draws the cells, trains, and measures.",
    ]
    return "\n".join(lines) + "\n"


def memory_text(results: dict) -> str:
    """The most memory that a step takes, by what learns."""
    rows = [
        f"| `{mode}` | {step['peak'] / 1e9:.1f} GB | {step['seconds']:.0f} s |"
        for mode, step in results["steps"].items()
    ]
    height, width = results["input_size"]
    lines = [
        "## Memory",
        "",
        f"One step of the full `{results['model']}`, {height} x {width} pixels, "
        f"{results['objects']} objects, {results['clicks']} corrections, with checkpointing, in "
        f"float32 on the processor ({machine_text(results['machine'])}):",
        "",
        "| what learns | most memory | time |",
        "|---|---|---|",
        *rows,
        "",
        "`python -m benchmarks.finetune_memory` measures it.",
    ]
    return "\n".join(lines) + "\n"
