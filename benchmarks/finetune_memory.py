"""Memory of one step of fine-tuning the full `sam_vit_b` at 1024 pixels, with random weights.

    python -m benchmarks.finetune_memory

`decoder`: an image is encoded, and the mask decoder learns from its embeddings. `all`: everything
learns. Both simulate 8 corrections, with checkpointing and AdamW; each in a process of its own,
whose peak of resident memory counts, Python and PyTorch included. The results go to
benchmarks/results and onto the page about fine-tuning. Linux only.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from benchmarks.finetuning import page
from benchmarks.speeds.measure import machine
from segment_anything_transformers import SegmentAnythingModel, SegmentAnythingModelConfig
from segment_anything_transformers.finetuning_model import prepare_model

MODES = ("decoder", "all")


def step(mode, preset, objects, clicks):
    """One step; returns seconds."""
    torch.manual_seed(0)
    config = SegmentAnythingModelConfig.from_preset(preset)
    model = SegmentAnythingModel(config)
    learner = prepare_model(model, mode).train()
    learner.activation_checkpointing_enable({"use_reentrant": False})
    learner.clicks = clicks
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], 1e-4)
    inputs = {"pixel_values": torch.randn(1, 3, *config.input_size)}
    labels = torch.zeros(1, objects, *config.mask_size(), dtype=torch.int8)
    labels[..., 10:60, 20:90] = 1
    start = time.perf_counter()
    if mode == "decoder":
        with torch.no_grad():
            inputs = {"image_embeddings": model.get_image_embeddings(inputs["pixel_values"])}
    learner(**inputs, labels=labels)["loss"].backward()
    optimizer.step()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="sam_vit_b")
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--clicks", type=int, default=8)
    parser.add_argument("--mode", choices=MODES, help="this one, in this process")
    parser.add_argument("--no-docs", action="store_true", help="print the figures alone")
    options = parser.parse_args()
    if options.mode:
        seconds = step(options.mode, options.model, options.objects, options.clicks)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"peak": peak, "seconds": seconds}))
        return
    steps = {mode: in_process(mode) for mode in MODES}
    for mode, figures in steps.items():
        print(f"{mode}: {figures['peak'] / 1e9:.2f} GB, {figures['seconds']:.0f} s a step")
    if not options.no_docs:
        size = SegmentAnythingModelConfig.from_preset(options.model).input_size
        asked = {"model": options.model, "objects": options.objects, "clicks": options.clicks}
        results = {"machine": machine(torch.get_num_threads()), **asked, "input_size": size}
        page.keep("finetune_memory", {**results, "steps": steps})


def in_process(mode):
    """Peak of memory and seconds of a step, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.finetune_memory", *sys.argv[1:], "--mode", mode]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
