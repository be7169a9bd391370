"""Trains what rates the masks of `sam_vit_t` alone, when its masks are as good as they get.

    python -m examples.train_rating --scenes scenes/train --model run/model --output rated

The rating reads one token of the mask decoder. With everything else frozen, these tokens and the
real IoU of the masks need computing only once. So the few layers that read them learn from many
prompts at once and as often as they like, while a step of the whole training sees two pictures.
The rating of some views that it did not learn from is printed before and after each epoch, and the
best epoch is kept.
"""

import argparse
import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.scene_dataset import SceneDataset, ViewOptions
from examples.training_loss import (
    best_masks,
    corrected_answers,
    either_prompt,
    first_prompts,
    normalise,
    rating_loss,
    true_iou,
)
from segment_anything_transformers.modeling_segment_anything import SegmentAnythingModel

HELD_OUT = 0.1
"""Share of the views that only tell how good the rating is."""


class Rated(NamedTuple):
    """What is known of some prompt sets."""

    tokens: Tensor  # (n, D), what the rating reads
    iou: Tensor  # (n, 1 + K)

    def take(self, part: slice | Tensor) -> "Rated":
        """Some of the prompt sets."""
        return Rated(self.tokens[part], self.iou[part])


@torch.no_grad()
def answers(model: SegmentAnythingModel, batch: dict[str, Tensor]) -> Rated:
    """Tokens and real IoU for a click and a box an object, and for one of them with a correction.

    Args:
        model: The model.
        batch: What `SceneDataset` gives, stacked.
    """
    read: list[Tensor] = []
    hook = model.mask_decoder.iou_prediction_head.register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0])
    )
    embeddings = model.get_image_embeddings(
        normalise(batch["pixels"], batch["inside"], model.config)
    )
    truth = (batch["truth"] / 255.0).repeat(1, 2, 1, 1)
    prompts = first_prompts(batch["points"], batch["boxes"])
    logits, scores = model.decode(embeddings, *prompts)
    images, objects = batch["boxes"].shape[:2]
    some = either_prompt(images, objects, truth.device)
    taken = [values[some] for values in (best_masks(logits, scores), *prompts, truth)]
    corrected, _ = corrected_answers(model, embeddings, 1, *taken)
    hook.remove()
    iou = [true_iou(logits, truth), true_iou(corrected, truth[some])]
    return Rated(*(torch.cat([part.flatten(0, 1).float() for part in x]) for x in (read, iou)))


def figures(head: nn.Module, rated: Rated) -> tuple[float, str]:
    """The loss of a rating, and a line that tells what it is worth."""
    with torch.no_grad():
        scores = head(rated.tokens)
    multiple = rated.iou[:, 1:]
    best, chosen = multiple.amax(1), multiple.gather(1, scores[:, 1:].argmax(1, keepdim=True))
    error = (scores - rated.iou).square().mean().sqrt()
    loss = rating_loss(scores, rated.iou).item()
    return loss, f"loss {loss:.4f}, error {error:.3f}, IoU {chosen.mean():.4f} of {best.mean():.4f}"


def fit(head: nn.Module, rated: Rated, options: argparse.Namespace) -> nn.Module:
    """The head of the best epoch, judged by the last of the prompt sets."""
    count = len(rated.iou) - int(HELD_OUT * len(rated.iou))
    known, held_out = rated.take(slice(count)), rated.take(slice(count, None))
    optimizer = torch.optim.AdamW(head.parameters(), options.learning_rate, weight_decay=0.01)
    steps = options.epochs * -(-count // options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    least, line = figures(head, held_out)
    best = copy.deepcopy(head)
    print(f"{len(rated.iou)} prompt sets; before: {line}")
    for epoch in range(options.epochs):
        for part in torch.randperm(count).split(options.batch_size):
            some = known.take(part)
            optimizer.zero_grad()
            rating_loss(head(some.tokens), some.iou).backward()
            optimizer.step()
            schedule.step()
        loss, line = figures(head, held_out)
        print(f"epoch {epoch + 1}: {line}")
        if loss < least:
            least, best = loss, copy.deepcopy(head)
    return best


def main() -> None:
    """Computes the tokens, fits the rating and saves the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=Path, nargs="+", required=True, help="rendered scenes")
    parser.add_argument("--model", required=True, help="folder of the trained model")
    parser.add_argument("--output", type=Path, required=True, help="folder of the better one")
    parser.add_argument("--views", type=int, default=1500)
    parser.add_argument("--size", type=int, default=1024, help="side of the input in pixels")
    parser.add_argument("--objects", type=int, default=8, help="objects a view")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=512, help="prompt sets a step")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = SegmentAnythingModel.from_pretrained(options.model).eval()
    views = ViewOptions(
        size=options.size, objects=options.objects, min_side=0.65, size_preference=0.2
    )
    data = SceneDataset(options.scenes, views, options.views, options.seed)
    parts = [answers(model, batch) for batch in tqdm(DataLoader(data, num_workers=1))]
    rated = Rated(*(torch.cat(part) for part in zip(*parts, strict=True)))
    model.mask_decoder.iou_prediction_head = fit(
        model.mask_decoder.iou_prediction_head, rated, options
    )
    model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
