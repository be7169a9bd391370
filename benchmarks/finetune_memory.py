"""Memory of fine-tuning the full `sam_vit_b` at 1024 pixels, with random weights.

    python -m benchmarks.finetune_memory

`finetune` itself, for a few steps and in each mode: reading and encoding pictures, checkpoints,
AdamW and its state, and saving the result are part of it. Every step has the objects and the
corrections that are the defaults of `finetune`; where the image encoder learns, it has activation
checkpointing. Each mode has a process of its own, whose peak of resident memory counts, Python and
PyTorch included. The results go to benchmarks/results and onto the page about fine-tuning. Linux
only.
"""

import argparse
import json
import resource
import sys
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch

from benchmarks.finetuning import page
from benchmarks.finetuning.cells import write_cells
from benchmarks.speeds import measure
from segment_anything_transformers import (
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
    finetune,
)
from segment_anything_transformers.training.interactive_model import Mode

MODULE = "benchmarks.finetune_memory"
MODES = get_args(Mode)


def seconds_a_step(options: argparse.Namespace) -> float:
    """Fine-tunes on as many drawn pictures as there are steps."""
    torch.manual_seed(0)
    model = SegmentAnythingModel(SegmentAnythingModelConfig.from_preset(options.model))
    with TemporaryDirectory() as folder:
        result = finetune(
            model,
            write_cells(Path(folder) / "cells", options.steps, seed=0),
            Path(folder) / "tuned",
            mode=options.mode,
            max_steps=options.steps,
            objects_per_image=options.objects,
            clicks=options.clicks,
            activation_checkpointing=options.mode != "decoder",
            use_cpu=True,
            disable_tqdm=True,
        )
    return result.log[-1]["train_runtime"] / options.steps


def main() -> None:
    """Measures every mode and writes the figures, or measures the one that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="sam_vit_b")
    defaults = signature(finetune).parameters
    parser.add_argument("--objects", type=int, default=defaults["objects_per_image"].default)
    parser.add_argument("--clicks", type=int, default=defaults["clicks"].default)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--mode", choices=MODES, help="this one, in this process")
    parser.add_argument("--no-docs", action="store_true", help="print the figures alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.mode:
        seconds = seconds_a_step(options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"peak": peak, "seconds": seconds}))
        return
    modes = {
        mode: measure.in_process(MODULE, [*sys.argv[1:], "--mode", mode], options.threads)
        for mode in MODES
    }
    for mode, figures in modes.items():
        print(f"{mode}: {figures['peak'] / 1e9:.2f} GB, {figures['seconds']:.0f} s a step")
    if not options.no_docs:
        asked = {name: getattr(options, name) for name in ("model", "objects", "clicks", "steps")}
        size = SegmentAnythingModelConfig.from_preset(options.model).input_size
        results = {"machine": measure.machine(options.threads), **asked, "input_size": size}
        page.keep("finetune_memory", {**results, "modes": modes})


if __name__ == "__main__":
    main()
