"""Memory of one step of fine-tuning the full `sam_vit_b` at 1024 pixels, with random weights.

    python benchmarks/finetune_memory.py

`decoder`: an image is encoded, and the mask decoder learns from its embeddings. `all`: everything
learns. Both simulate 8 corrections, with checkpointing and AdamW; each in a process of its own,
whose peak of resident memory counts, Python and PyTorch (about 0.4 GB) included.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from segment_anything_transformers import SegmentAnythingModel, SegmentAnythingModelConfig
from segment_anything_transformers.finetuning import prepare_model


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
    parser.add_argument("--mode", choices=("decoder", "all"), help="this one, in this process")
    options = parser.parse_args()
    if options.mode is None:
        for mode in ("decoder", "all"):
            subprocess.run([sys.executable, *sys.argv, "--mode", mode], check=True)
        return
    seconds = step(options.mode, options.model, options.objects, options.clicks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{options.mode}: {peak:.2f} GB at the most, {seconds:.0f} s a step")


if __name__ == "__main__":
    main()
