"""The mask decoder: masks, and the quality of each, from image and prompts.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A, "Lightweight mask
decoder".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_segment_anything import SegmentAnythingModelConfig
from .fast_decoder import FastDecoder, FastPrompts
from .layers import LayerNorm2d, Perceptron, is_plain, is_traced, linear, slices, vectors
from .two_way_transformer import DecoderAttention, TwoWayBlock, TwoWayTransformer

_POSITIONS_AT_ONCE = {True: 1 << 14, False: 1 << 18}
"""Image tokens of all prompt sets that are decoded together, on a processor and elsewhere."""

_SETS_UPSCALED_AT_ONCE = {True: 1, False: 32}
"""Prompt sets whose image is upscaled at a time, on a processor and elsewhere: one fills the cache
of a processor, and the launch of its operations takes a GPU longer than their work."""


class LayeredPerceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        """Maps `width` to `out` through `depth` layers."""
        super().__init__()
        widths = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms the last axis."""
        for layer in self.layers[:-1]:
            x = F.relu(linear(layer, x))
        return linear(self.layers[-1], x)


class DecodedPrompts(NamedTuple):
    """What is known of prompt sets before their masks are made."""

    decoder: MaskDecoder
    iou_scores: Tensor  # (N, P, 1 + K)
    mask_tokens: Tensor  # (N, P, 1 + K, D)
    image: Tensor  # (N, P, L, D)
    grid_hw: tuple[int, int]

    def split(self) -> list[DecodedPrompts]:
        """A few of the prompt sets at a time, as many as should be upscaled together."""
        length = _SETS_UPSCALED_AT_ONCE[self.image.device.type == "cpu"]
        return [self.of_sets(part) for part in slices(self.image.shape[1], length)]

    def of_sets(self, sets: slice | list[int]) -> DecodedPrompts:
        """Some of the prompt sets."""
        return self._replace(
            iou_scores=self.iou_scores[:, sets],
            mask_tokens=self.mask_tokens[:, sets],
            image=self.image[:, sets],
        )

    def masks(self, chosen: Sequence[int]) -> Tensor:
        """Logits (N, P, K, H', W') of the chosen masks: tokens weigh the upscaled image."""
        weights = self.decoder.channel_weights(self.mask_tokens, chosen)
        image = self.image.flatten(0, 1).mT.unflatten(2, self.grid_hw)  # (N P, D, H'', W'')
        upscaled = self.decoder.output_upscaling(image)  # (N P, D / 8, H', W')
        logits = weights.flatten(0, 1) @ upscaled.flatten(2)
        return logits.unflatten(2, upscaled.shape[2:]).unflatten(0, (-1, weights.shape[1]))


class MaskDecoder(nn.Module):
    """Predicts masks, and the quality of each, from image and prompts."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes one output token for each mask and one for their quality."""
        super().__init__()
        width, masks = config.embed_dim, config.nb_multimask_outputs + 1
        self.masks_per_set = masks
        self.prompts_per_group: int | None = None
        self.last_shared: tuple | None = None  # of the fast form
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(masks, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            LayeredPerceptron(width, width, width // 8, 3) for _ in range(masks)
        )
        self.iou_prediction_head = LayeredPerceptron(
            width, config.decoder_iou_hidden_dim, masks, config.decoder_iou_head_depth
        )

    def forward(
        self,
        image_embeddings: Tensor,
        image_positions: Tensor,
        prompt_tokens: Tensor | None,
        dense_embeddings: Tensor,
        exists: Tensor | None,
        selection: slice,
    ) -> tuple[Tensor, Tensor]:
        """Predicts the selected masks of every prompt set.

        Args:
            image_embeddings: (N, D, H'', W'').
            image_positions: (H'', W'', D).
            prompt_tokens: (N, P, M, D) or None.
            dense_embeddings: (N or 1, P or 1, D, H'' or 1, W'' or 1).
            exists: (N, P, M), False where a prompt is padding, or None.
            selection: Which of the masks: 0 is the single one, the others are the multiple ones.

        Returns:
            Mask logits (N, P, K, H', W') and predicted qualities (N, P, K).
        """
        chosen = range(self.masks_per_set)[selection]
        decoded = self.decode(
            image_embeddings, image_positions, prompt_tokens, dense_embeddings, exists
        )
        if is_traced():
            (whole,) = decoded
            return whole.masks(chosen), whole.iou_scores[..., selection]
        scores: list[Tensor] = []

        def in_parts() -> Iterator[Tensor]:
            for group in decoded:
                scores.append(group.iou_scores[..., selection])
                yield from (part.masks(chosen) for part in group.split())

        sets = dense_embeddings if prompt_tokens is None else prompt_tokens
        return _joined(in_parts(), sets.shape[1]), torch.cat(scores, dim=1)

    def decode(
        self,
        image_embeddings: Tensor,
        image_positions: Tensor,
        prompt_tokens: Tensor | None,
        dense_embeddings: Tensor,
        exists: Tensor | None,
    ) -> Iterator[DecodedPrompts | FastPrompts]:
        """All that is known of the masks before they are made, for some prompt sets at a time.

        Takes what `forward` takes.
        """
        tokens, exists = self._all_tokens(image_embeddings, prompt_tokens, dense_embeddings, exists)
        positions = image_positions.flatten(0, 1).to(image_embeddings.dtype)
        groups = self._groups(tokens.shape[1], image_embeddings)
        if self._is_fast(image_embeddings):
            yield from FastDecoder(self).decode(
                image_embeddings, dense_embeddings, positions, tokens, exists, groups
            )
            return
        for group in groups:
            of_group = slice(None) if dense_embeddings.shape[1] == 1 else group
            image = image_embeddings[:, None] + dense_embeddings[:, of_group]
            refined, image = self.transformer(
                tokens[:, group],
                image.flatten(3).mT,
                positions,
                None if exists is None else exists[:, group],
            )
            yield DecodedPrompts(
                self,
                self.iou_prediction_head(refined[:, :, 0]),
                refined[:, :, 1 : 1 + self.masks_per_set],
                image,
                (image_embeddings.shape[2], image_embeddings.shape[3]),
            )

    def channel_weights(self, mask_tokens: Tensor, chosen: Sequence[int]) -> Tensor:
        """Weights (N, P, K, D / 8) of the upscaled image's channels, for the chosen masks."""
        perceptrons = self.output_hypernetworks_mlps
        return torch.stack([perceptrons[k](mask_tokens[:, :, k]) for k in chosen], dim=2)

    def _all_tokens(
        self,
        image_embeddings: Tensor,
        prompt_tokens: Tensor | None,
        dense_embeddings: Tensor,
        exists: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Output tokens and those of the prompts (N, P, T, D), and which of them exist."""
        outputs = torch.cat(
            [vectors(self.iou_token), vectors(self.mask_tokens, self.masks_per_set)]
        )
        tokens = outputs.expand(*image_embeddings.shape[:1], dense_embeddings.shape[1], -1, -1)
        if prompt_tokens is not None:
            tokens = tokens[:, :1].expand(-1, prompt_tokens.shape[1], -1, -1)
            tokens = torch.cat([tokens, prompt_tokens], dim=2)
        if exists is not None:
            exists = F.pad(exists, (outputs.shape[0], 0), value=True)
        return tokens, exists

    def _is_fast(self, image_embeddings: Tensor) -> bool:
        """Whether the fast form of the decoder may take over, see `FastDecoder`."""
        if torch.is_grad_enabled() or is_traced() or image_embeddings.device.type != "cpu":
            return False
        return all(is_plain(module, _PLAIN_PARTS) for module in self.modules())

    def _groups(self, sets: int, image_embeddings: Tensor) -> list[slice]:
        """Prompt sets that are decoded together.

        They are all of them in a graph that is traced, and for gradients on a GPU: these keep what
        all groups made, so that only a processor's cache is a reason for small ones.
        """
        is_cpu = image_embeddings.device.type == "cpu"
        length = self.prompts_per_group
        keeps_all = torch.is_grad_enabled() and not is_cpu and length is None
        if is_traced() or keeps_all:
            return [slice(None)]
        if length is None:
            positions = _POSITIONS_AT_ONCE[is_cpu]
            length = max(1, positions // image_embeddings[:, 0].numel())
        return slices(sets, length)


_PLAIN_PARTS = frozenset(
    {
        DecoderAttention,
        LayerNorm2d,
        LayeredPerceptron,
        MaskDecoder,
        Perceptron,
        TwoWayBlock,
        TwoWayTransformer,
        nn.ConvTranspose2d,
        nn.Dropout,
        nn.Embedding,
        nn.GELU,
        nn.LayerNorm,
        nn.Linear,
        nn.ModuleList,
        nn.Sequential,
    }
)
"""Classes of the decoder's parts whose weights the fast form knows how to use."""


def _joined(parts: Iterator[Tensor], count: int) -> Tensor:
    """Parts, of so many rows along the second axis in all, joined along it.

    Without gradients each is written into its place: small results that stay, among large ones
    that go, would scatter the free memory.
    """
    if torch.is_grad_enabled():
        return torch.cat([*parts], dim=1)
    first = next(parts)
    joined = first.new_empty(first.shape[0], count, *first.shape[2:])
    start = 0
    for part in chain([first], parts):
        joined[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return joined
