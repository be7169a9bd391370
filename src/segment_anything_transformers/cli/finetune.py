"""The command `segment-anything finetune`."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

from .files import UsageError, make_folder, usage_errors
from .models import load_model
from .samples import (
    add_data_command,
    faults_asked,
    image_bar,
    read_samples,
    report_skipped,
    whole_number,
)

_FINETUNE = """\
Fine-tunes a model on images with true masks (PyTorch). The output folder is then a model like any
other: for --model of every command, for from_pretrained and for pipeline("mask-generation").
"""

_EXAMPLES = """\
examples:
  segment-anything finetune cells --output my-sam
  segment-anything finetune cells --eval-data held-out --mode lora --bf16 --output my-sam
  segment-anything finetune train.json --images train2017 --steps 5000 --output my-sam
  segment-anything finetune me/roofs --eval-data me/roofs --eval-split test --output my-sam
  segment-anything finetune cells --output my-sam --resume
  accelerate launch --no_python segment-anything finetune cells --output my-sam

DATA is what `segment-anything evaluate` takes. The modes:
  decoder   the mask decoder alone; each image is encoded once, and its embeddings are kept
  lora      the mask decoder, and adapters in the image encoder (needs peft)
  all       everything

writes: the model and its processor; checkpoints/, to go on from; embeddings/ with --mode decoder.

"""


def add_finetune(commands: Any, exit_codes: str) -> argparse.ArgumentParser:
    """Adds the subcommand; the options on the model are left to the caller."""
    parser = add_data_command(
        commands,
        "finetune",
        description=_FINETUNE,
        epilog=_EXAMPLES + exit_codes,
        help="train a model on your images and masks",
    )
    parser.add_argument("--eval-data", metavar="DATA", help="held-out images, measured on the way")
    parser.add_argument(
        "--eval-images", metavar="FOLDER", help="images of --eval-data, if it is COCO annotations"
    )
    parser.add_argument(
        "--eval-split", metavar="SPLIT", help="of --eval-data, if it is a Hub data set"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the new model")
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last checkpoint in the output"
    )
    _add_training_options(parser.add_argument_group("the training"))
    return parser


def _add_training_options(group: Any) -> None:
    group.add_argument(
        "--mode",
        default="decoder",
        choices=("decoder", "lora", "all"),
        help="what learns (default: %(default)s)",
    )
    for flag, limits, default, meaning in (
        ("--steps", (1, 10**9), 500, "number of steps"),
        ("--batch-size", (1, 10_000), 1, "images in a step"),
        ("--accumulate", (1, 10**6), 1, "batches in a step, one after the other"),
        ("--objects-per-image", (1, 10_000), 8, "the most objects of an image in a batch"),
        ("--clicks", (0, 1000), 8, "corrections that are simulated; fewer are faster"),
        ("--lora-rank", (1, 10_000), 8, "rank of the adapters"),
        ("--workers", (0, 1000), 0, "processes that read images"),
        ("--seed", (0, 2**32 - 1), 42, "of everything random"),
    ):
        group.add_argument(
            flag,
            type=whole_number(*limits),
            default=default,
            metavar="N",
            help=f"{meaning} (default: {default})",
        )
    group.add_argument(
        "--learning-rate", type=_rate, metavar="X", help="default: 2e-4, and 5e-5 for --mode all"
    )
    group.add_argument("--bf16", action="store_true", help="compute in bfloat16, learn in float32")
    group.add_argument(
        "--checkpointing",
        action="store_true",
        help="activation checkpointing where the image encoder learns: less memory, more time",
    )


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return rate


def run_finetune(args: argparse.Namespace) -> int:
    """Trains and saves; returns the exit code.

    Raises:
        UsageError: The data or an option is faulty.
    """
    if args.framework == "tf":
        raise UsageError("finetune trains in PyTorch; Keras models learn with their fit")
    if args.dtype != "float32":
        raise UsageError("finetune learns in float32; --bf16 computes in bfloat16")
    args.quiet |= os.environ.get("RANK", "0") != "0"  # of several processes one speaks
    samples = read_samples(args)
    held_out = None
    if args.eval_data:
        held_out = read_samples(args, args.eval_data, args.eval_images, args.eval_split)
    make_folder(args.output)
    model = load_model(args.model, "torch", args.device, args.dtype)
    from ..training.finetuning import finetune

    with usage_errors():
        result = finetune(model, samples, args.output, held_out, **_options(args))
    if not args.quiet:
        _print_gain(result.log)
        print(f"written to {Path(args.output)}/")
    return report_skipped(result.faults)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `finetune` that the command line means."""
    return {
        "mode": args.mode,
        "max_steps": args.steps,
        "learning_rate": args.learning_rate,
        "objects_per_image": args.objects_per_image,
        "clicks": args.clicks,
        "faults": faults_asked(args),
        "resume": args.resume,
        "lora_rank": args.lora_rank,
        "progress": image_bar(args),
        "per_device_train_batch_size": args.batch_size,
        "gradient_accumulation_steps": args.accumulate,
        "dataloader_num_workers": args.workers,
        "activation_checkpointing": args.checkpointing,
        "bf16": args.bf16,
        "seed": args.seed,
        "use_cpu": args.device == "cpu",
        "disable_tqdm": args.quiet,
        "log_level": "error" if args.quiet else "passive",
    }


def _print_gain(log: list[dict[str, float]]) -> None:
    measured = [entry for entry in log if "eval_iou_box" in entry]
    if len(measured) < 2:
        return
    for name in ("box", "click"):
        before, after = (entry[f"eval_iou_{name}"] for entry in (measured[0], measured[-1]))
        print(f"mean IoU with a {name}: {before:.3f} before, {after:.3f} after")
