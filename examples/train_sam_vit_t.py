"""Trains `sam_vit_t`, the model inside the package, on rendered scenes and labelled photographs.

    python -m examples.scenes.render --output scenes/train --count 12000
    python -m examples.train_sam_vit_t --scenes scenes/train --output run --size 256 --steps 12000
    python -m examples.train_sam_vit_t --scenes scenes/train --output run --size 512 --steps 15000 \
        --decay-steps 2000

The model starts from what is known before (`training_start.py`), and learns from more than the
paper's loss (`training_loss.py`). `--precision bf16` is for what computes in it quickly, new
processors too.

`torchrun --nproc-per-node 2 -m examples.train_sam_vit_t ...` trains in two processes, each with
`--batch-size` images a step; on a CPU that is faster than two threads in one.

On a GPU, with as many processes that render as there are cores to feed it:

    python -m examples.train_sam_vit_t --pools scenes/pools/train --output run --size 1024 \
        --initial sam_vit_t --precision bf16 --batch-size 24 --workers 14 \
        --steps 3000 --decay-steps 2700 --minutes 8

A run continues from `run/last.pt`, also with another size. The learning rate rises, stays, and
falls to zero in the last `--decay-steps`. Unless `--minutes` decide, `run/stable.pt` keeps the
state before the fall, so that a later run can go on from there (`--resume run/stable.pt`). The
averaged weights are written to `run/model` whenever a checkpoint is.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from examples import training_loss
from examples.scene_dataset import (
    LabelledPhotographs,
    RenderedScenes,
    SceneDataset,
    StoredScenes,
    ViewOptions,
)
from examples.training_frame import enlarged, move_frame, use_frame
from examples.training_loss import DenseHead
from examples.training_start import STARTS, EncoderShape, initial_model
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel

AVERAGE_DECAY = 0.998
LOG_EVERY = 50
NO_MATRICES = ("embed", "rel_pos", "iou_token", "mask_tokens")
RANK = int(os.environ.get("RANK", "0"))
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", type=Path, nargs="+", help="rendered scenes")
    source.add_argument("--pools", type=Path, help="what scenes are made of, to render meanwhile")
    parser.add_argument(
        "--plain", type=float, default=0.0, help="share of plain scenes among those of --pools"
    )
    parser.add_argument("--photographs", type=Path, help="photographs that have masks, to add")
    parser.add_argument(
        "--photograph-share", type=float, default=0.5, help="share of views of photographs"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--resume", type=Path, help="checkpoint other than OUTPUT/last.pt")
    parser.add_argument("--initial", help="model to start from, such as sam_vit_t, if not resumed")
    parser.add_argument("--initial-encoder", help="model whose image encoder alone to start from")
    shape = parser.add_argument_group("shape of the image encoder, if it is not the preset's")
    for name, value in EncoderShape()._asdict().items():
        shape.add_argument(f"--{name}", type=int, help=f"instead of {value}")
    parser.add_argument(
        "--random",
        nargs="+",
        choices=STARTS,
        default=[],
        help="what of a new model starts at random",
    )
    add_view_arguments(parser)
    parser.add_argument("--steps", type=int, default=10_000, help="last step, from the start")
    parser.add_argument(
        "--minutes", type=float, help="ends then, with the rates of --steps stretched over the time"
    )
    parser.add_argument("--decay-steps", type=int, default=0, help="steps of the final decay")
    parser.add_argument("--warmup-steps", type=int, default=300, help="steps of the rise")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument(
        "--corrections", type=float, default=0.3, help="share of steps with correcting clicks"
    )
    parser.add_argument(
        "--dense-weight", type=float, default=1.0, help="of the loss that needs no prompts"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="takes minutes, steps are faster")
    return parser


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """How the inputs are cut out of scenes."""
    parser.add_argument("--size", type=int, default=256, help="side of the input in pixels")
    parser.add_argument("--frame", type=int, help="side of pictures that the inputs are parts of")
    parser.add_argument("--batch-size", type=int, default=16, help="images a step")
    parser.add_argument("--objects", type=int, default=6, help="objects an image")
    parser.add_argument("--min-side", type=float, default=0.375, help="smallest view of a scene")
    parser.add_argument("--focus", type=float, default=0.0, help="share of views of one object")
    parser.add_argument(
        "--size-preference", type=float, default=0.5, help="power of the area in objects' chances"
    )
    parser.add_argument("--nested", type=float, default=0.0, help="share of views with parts")


def parse_arguments() -> argparse.Namespace:
    """Options of the command."""
    parser = make_parser()
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in EncoderShape._fields}
    given = {name: value for name, value in given.items() if value is not None}
    of_new_models = [*given, *(["random"] if options.random else [])]
    if of_new_models and (options.initial or options.frame):
        parser.error(
            f"--{min(of_new_models)} is a new model's; --initial and --frame start from another"
        )
    options.shape = EncoderShape(**given)
    if options.plain and options.scenes:
        parser.error("--plain is for --pools: stored scenes are what they are")
    if options.minutes and PROCESSES > 1:
        parser.error("--minutes is for one process: others would end at another step")
    return options


def scheduled_step(step: int, seconds: float, options: argparse.Namespace) -> float:
    """Where in the schedule a run is: at its step, or with `--minutes` as far as the time is."""
    if not options.minutes:
        return step
    return options.steps * seconds / (60.0 * options.minutes)


def learning_rate_share(step: int, scheduled: float, options: argparse.Namespace) -> float:
    """Share of the full learning rate: a linear rise, a plateau, a linear fall as scheduled."""
    rise = min(1.0, (step + 1) / options.warmup_steps)
    if not options.decay_steps:
        return rise
    return min(rise, max(0.0, (options.steps - scheduled) / options.decay_steps))


def make_optimizers(model: nn.Module, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices unless AdamW is asked for, AdamW for the rest.

    Biases, norms, embeddings and positions do not decay.
    """
    named = list(model.named_parameters())
    plain = {n for n, p in named if p.ndim == 1 or any(part in n for part in NO_MATRICES)}
    by_muon = {n for n, p in named if p.ndim == 2 and options.optimizer == "muon"} - plain
    matrices = [p for n, p in named if n in by_muon]
    others = [p for n, p in named if n not in plain | by_muon]
    rest = [p for n, p in named if n in plain]
    rate, decay = options.learning_rate, options.weight_decay
    groups = [{"params": others, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def average_gradients(model: nn.Module) -> None:
    """Gives every process the mean of all processes' gradients."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if PROCESSES > 1:
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        parts = (together / PROCESSES).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def move_average(averages: Any, weights: Any, count: Tensor | int) -> None:
    """Moves running averages towards the weights, quickly after the first few steps."""
    decay = min(AVERAGE_DECAY, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(averages, weights, 1.0 - decay)


class Run:
    """Model, its running average, optimizer and step, saved together."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Continues from a checkpoint where there is one, else starts from scratch."""
        torch.manual_seed(options.seed)
        self.options = options
        # On a CPU, with the few tokens of prompts, products and a softmax are faster than a kernel.
        attention = "eager" if options.device == "cpu" else "sdpa"
        if options.frame:
            model = enlarged(options.initial or "sam_vit_t", options.frame, attention)
            use_frame(model)
        else:
            model = initial_model(
                options.initial,
                options.initial_encoder,
                attention,
                options.shape,
                options.random,
            )
        head = DenseHead(model.config.embed_dim)
        self.parts = nn.ModuleDict({"model": model, "head": head}).to(options.device).train()
        self.model = model
        self.average = AveragedModel(self.model, multi_avg_fn=move_average)
        self.optimizers = make_optimizers(self.parts, options)
        self.step = 0
        checkpoint = options.resume or options.output / "last.pt"
        if checkpoint.exists():
            self.load(checkpoint)

    def compile(self) -> None:
        """Compiles what a step spends its time in: encoder blocks, decoder and loss."""
        for block in self.model.image_encoder.blocks:
            block.compile()
        self.model.decode = torch.compile(self.model.decode)  # type: ignore[method-assign]
        for name in ("loss_of_all_masks", "around_objects", "rating_loss", "true_iou"):
            setattr(training_loss, name, torch.compile(getattr(training_loss, name)))

    def load(self, path: Path) -> None:
        """Restores everything that `save` wrote."""
        state = torch.load(path, map_location=self.options.device, weights_only=True)
        self.parts.load_state_dict(state["parts"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]

    def save(self, name: str) -> None:
        """Writes a checkpoint, and the averaged weights as a model folder, in the first process."""
        if RANK > 0:
            return
        state = {
            "parts": self.parts.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
        }
        unfinished = self.options.output / f"{name}.tmp"
        torch.save(state, unfinished)
        unfinished.rename(self.options.output / name)
        averaged = cast(SegmentAnythingModel, self.average.module)
        averaged.save_pretrained(self.options.output / "model")

    def take_step(self, batch: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """Learns from one batch, at a share of the learning rate."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.options.learning_rate * share
        rng = np.random.default_rng((self.options.seed, 1, self.step))
        draw, x, y = rng.random(3)
        corrections = 0
        if draw < self.options.corrections:
            corrections = min(int(rng.geometric(0.5)), training_loss.MOST_CORRECTIONS)
        if self.options.frame:
            move_frame(self.model, self.options.size, x, y)
        with torch.autocast(
            self.options.device, torch.bfloat16, enabled=self.options.precision == "bf16"
        ):
            loss, figures = training_loss.training_loss(
                self.model,
                self.parts["head"],
                batch,
                corrections=corrections,
                dense_weight=self.options.dense_weight,
            )
        self.parts.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.parts)
        norm = nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        if not norm.isfinite():
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.step}; its gradients are not finite."
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        return {"loss": loss.detach(), "norm": norm, **figures}


def batches(options: argparse.Namespace, start: int) -> DataLoader[Any]:
    """Batches of the steps that are left, in order."""
    views = ViewOptions(
        size=options.size,
        objects=options.objects,
        focus=options.focus,
        min_side=options.min_side,
        size_preference=options.size_preference,
        nested=options.nested,
        photographs=options.photograph_share,
    )
    stored, pools, seed = options.scenes, options.pools, options.seed
    scenes = StoredScenes(stored) if stored else RenderedScenes(pools, seed, options.plain)
    photographs = LabelledPhotographs(options.photographs) if options.photographs else None
    data = SceneDataset(scenes, views, seed, photographs)
    first = start * options.batch_size * PROCESSES + RANK
    last = sys.maxsize if options.minutes else options.steps * options.batch_size * PROCESSES
    return DataLoader(
        Subset(data, range(first, last, PROCESSES)),
        options.batch_size,
        num_workers=options.workers,
        pin_memory=options.device != "cpu",
        worker_init_fn=_use_one_thread,
    )


def _use_one_thread(worker: int) -> None:
    cv2.setNumThreads(1)


def write_log(options: argparse.Namespace, line: dict[str, float]) -> None:
    """Adds a line to the log, in the first process."""
    if RANK == 0:
        with open(options.output / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")


def main() -> None:
    """Trains until the last step, with a log line every 50 steps."""
    options = parse_arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    if PROCESSES > 1:
        dist.init_process_group("gloo")
    run = Run(options)
    if options.compile:
        run.compile()
    begin, seen = time.time(), []
    bar = tqdm(
        batches(options, run.step),
        initial=run.step,
        total=None if options.minutes else options.steps,
        mininterval=10,
        disable=RANK > 0,
    )
    for batch in bar:
        scheduled = scheduled_step(run.step, time.time() - begin, options)
        if scheduled >= options.steps:
            break
        if scheduled == options.steps - options.decay_steps and options.decay_steps:
            run.save("stable.pt")
        on_device = {name: t.to(options.device, non_blocking=True) for name, t in batch.items()}
        seen.append(run.take_step(on_device, learning_rate_share(run.step, scheduled, options)))
        if run.step % LOG_EVERY == 0:
            means = {n: torch.stack([one[n] for one in seen]).mean().item() for n in seen[0]}
            seconds = time.time() - begin
            write_log(
                options, {"step": run.step, "size": options.size, **means, "seconds": seconds}
            )
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            seen = []
        if run.step % options.save_every == 0:
            run.save("last.pt")
    run.save("last.pt")


if __name__ == "__main__":
    main()
