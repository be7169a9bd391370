"""The model that learns in fine-tuning: its loss simulates a person, and parts of it are frozen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ..model.loss_segment_anything import (
    interactive_loss,
    mask_iou,
    resize_labels,
    segmentation_loss,
)
from ..model.modeling_segment_anything import SegmentAnythingModel

Mode = Literal["all", "decoder", "lora"]

_LORA_LAYERS = r"image_encoder\.blocks\.\d+\.attn\.(qkv|proj)"
_SINGLE, _SEVERAL = slice(0, 1), slice(1, None)
_MISSING = -1.0
"""In place of an IoU, where a prompt set has no truth; what pads batches is negative too."""

AnyModel = TypeVar("AnyModel", bound=SegmentAnythingModel)


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        [scale] = grads
        known = (None if one is None else scale * one for one in ctx.gradients)
        return None, None, *known


def with_gradients(loss: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The same loss, without what its gradients are computed from: they are computed at once.

    Takes less memory where losses of several parts are added that each keep much.

    Args:
        loss: A number with a graph, which is freed.
        inputs: All tensors that are to get gradients from it.
    """
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return _WithGradients.apply(loss.detach(), gradients, *inputs)


class InteractiveSegmentAnythingModel(SegmentAnythingModel):
    """A `SegmentAnythingModel` whose loss for `labels` simulates a person who corrects masks.

    In training mode `labels` (N, P, h, w) alone are needed, and give `interactive_loss`. In
    evaluation mode a click `input_points` and a box `input_boxes` of every object are measured:
    the loss of each, and `ious` (N, P, 2) of the single mask for the box and of the mask that the
    model rates highest for the click. Without labels it is the model as it was.
    """

    clicks = 8

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """The loss for labels, and what `SegmentAnythingModel` returns without them.

        Args:
            args: As in `SegmentAnythingModel`.
            labels: (N, P, h, w), as for `read_labels`.
            kwargs: As in `SegmentAnythingModel`; with labels `pixel_values` or `image_embeddings`,
                and in evaluation mode `input_points`, `input_labels` and `input_boxes`.
        """
        if labels is None:
            return super().forward(*args, **kwargs)
        image_embeddings = kwargs.pop("image_embeddings", None)
        if image_embeddings is None:
            image_embeddings = self.get_image_embeddings(kwargs.pop("pixel_values"))
        if self.training:
            return {"loss": self._interact(image_embeddings, labels)}
        return self._measure(image_embeddings, labels, **kwargs)

    def _interact(self, image_embeddings: Tensor, labels: Tensor) -> Tensor:
        weights = (*self.prompt_encoder.parameters(), *self.mask_decoder.parameters())
        learning = [one for one in (image_embeddings, *weights) if one.requires_grad]

        def decode(*prompts: Any) -> tuple[Tensor, Tensor]:
            return self.decode(image_embeddings, *prompts)

        def finished(loss: Tensor) -> Tensor:
            # All rounds together keep several times as much as all else of the mode "decoder".
            return with_gradients(loss, learning)

        patch = self.config.encoder_patch_size
        grid_h, grid_w = image_embeddings.shape[2:]
        input_hw = (grid_h * patch, grid_w * patch)
        return interactive_loss(
            decode, labels, input_hw, self.mask_threshold, self.clicks, finished
        )

    def _measure(
        self,
        embeddings: Tensor,
        labels: Tensor,
        input_points: Tensor,
        input_labels: Tensor,
        input_boxes: Tensor,
    ) -> dict[str, Tensor]:
        single, single_scores = self.decode(embeddings, input_boxes=input_boxes, selection=_SINGLE)
        several, scores = self.decode(embeddings, input_points, input_labels, selection=_SEVERAL)
        loss = segmentation_loss(single, single_scores, labels, self.mask_threshold)
        loss = loss + segmentation_loss(several, scores, labels, self.mask_threshold)
        best = scores.argmax(2)[:, :, None, None, None]
        logits = torch.cat([single, several.take_along_dim(best, dim=2)], dim=2)
        truth, known = resize_labels(labels, logits)
        ious = mask_iou(logits > self.mask_threshold, truth > 0.5, known)
        return {
            "loss": loss,
            "ious": torch.where(known.flatten(2).any(-1)[..., None], ious, _MISSING),
        }


def as_class(model: SegmentAnythingModel, kind: type[AnyModel]) -> AnyModel:
    """The model as an object of another class that has the same weights, which they share."""
    with torch.device("meta"):
        other = kind(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    other.name_or_path = model.name_or_path
    return other.train(model.training)


def prepare_model(model: SegmentAnythingModel, mode: Mode, lora_rank: int = 8) -> Any:
    """The model with the loss of simulated interaction, frozen but for what is to learn.

    Args:
        model: The model; its weights are shared.
        mode: "all"; "decoder", the mask decoder alone; or "lora", the mask decoder, and adapters
            (arXiv:2106.09685) in the attention of the image encoder, with the library peft.
        lora_rank: Rank of the adapters.

    Raises:
        ModuleNotFoundError: peft is missing.
        ValueError: There is no such mode.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
    interactive = as_class(model, InteractiveSegmentAnythingModel)
    if mode == "lora":
        return _with_adapters(interactive, lora_rank)
    interactive.requires_grad_(mode == "all")
    interactive.mask_decoder.requires_grad_(True)
    return interactive


def _with_adapters(model: InteractiveSegmentAnythingModel, rank: int) -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'The mode "lora" needs peft: '
            "`pip install 'segment-anything-transformers[finetune]'`.",
            name="peft",
        ) from error
    adapters = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=_LORA_LAYERS,
        modules_to_save=["mask_decoder"],
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for it by the old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return peft.get_peft_model(model, adapters)


def without_adapters(learner: Any) -> InteractiveSegmentAnythingModel:
    """The model inside its adapters, if it has any."""
    is_plain = isinstance(learner, InteractiveSegmentAnythingModel)
    return learner if is_plain else learner.get_base_model()


def trained_model(learner: Any) -> SegmentAnythingModel:
    """What `prepare_model` returned as a plain model in evaluation mode, adapters merged in."""
    is_plain = isinstance(learner, InteractiveSegmentAnythingModel)
    merged = learner if is_plain else learner.merge_and_unload()
    return as_class(merged, SegmentAnythingModel).eval()
