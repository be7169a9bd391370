"""The mask decoder: masks, and the quality of each, from image and prompts.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A, "Lightweight mask
decoder".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_segment_anything import SegmentAnythingModelConfig
from .fast_decoder import FastDecoder, FastPrompts
from .layers import LayerNorm2d, Perceptron, is_plain, is_traced, linear, slices, vectors
from .outputs import DecoderExtras
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
        image_positions: Tensor | None = None,
        prompt_tokens: Tensor | None = None,
        dense_embeddings: Tensor | None = None,
        exists: Tensor | None = None,
        selection: slice = slice(None),
        extras: DecoderExtras | None = None,
        **by_other_names: Any,
    ) -> tuple[Tensor, Tensor]:
        """Predicts the selected masks of every prompt set.

        The calls of Meta's code and of transformers' SAM are understood, too, with what their
        prompt encoders return: `mask_decoder(image_embeddings=..., image_pe=...,
        sparse_prompt_embeddings=..., dense_prompt_embeddings=..., multimask_output=...)` gives
        masks (P, K, H', W') and qualities (P, K). See `decode_by_other_names`.

        Args:
            image_embeddings: (N, D, H'', W'').
            image_positions: (H'', W'', D).
            prompt_tokens: (N, P, M, D) or None.
            dense_embeddings: (N or 1, P or 1, D, H'' or 1, W'' or 1).
            exists: (N, P, M), False where a prompt is padding, or None.
            selection: Which of the masks: 0 is the single one, the others are the multiple ones.
            extras: What else is asked for, or None.
            by_other_names: What these calls have beside `image_embeddings`.

        Returns:
            Mask logits (N, P, K, H', W') and predicted qualities (N, P, K).
        """
        if by_other_names:
            return decode_by_other_names(self, image_embeddings, **by_other_names)
        if image_positions is None or dense_embeddings is None:
            raise TypeError("mask_decoder needs image_positions and dense_embeddings.")
        chosen = range(self.masks_per_set)[selection]
        decoded = self.decode(
            image_embeddings, image_positions, prompt_tokens, dense_embeddings, exists, extras
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
        extras: DecoderExtras | None = None,
    ) -> Iterator[DecodedPrompts | FastPrompts]:
        """All that is known of the masks before they are made, for some prompt sets at a time.

        Takes what `forward` takes.
        """
        tokens, exists = self._all_tokens(image_embeddings, prompt_tokens, dense_embeddings, exists)
        positions = image_positions.flatten(0, 1).to(image_embeddings.dtype)
        groups = (
            self._groups(tokens.shape[1], image_embeddings) if extras is None else [slice(None)]
        )
        if extras is None and self._is_fast(image_embeddings):
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
                extras,
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


def decode_by_other_names(
    decoder: MaskDecoder,
    image_embeddings: Tensor,
    sparse_prompt_embeddings: Tensor | None,
    dense_prompt_embeddings: Tensor,
    image_pe: Tensor | None = None,
    image_positional_embeddings: Tensor | None = None,
    multimask_output: bool = True,
) -> tuple[Tensor, Tensor]:
    """Masks as the decoders of Meta's code and of transformers' SAM give them.

    Args:
        decoder: The decoder.
        image_embeddings: (1, D, H'', W'') of one image for all prompt sets, or (P, D, H'', W'')
            with one prompt set for each image, as MedSAM has it; transformers' SAM:
            (N, D, H'', W'').
        sparse_prompt_embeddings: Tokens (P, M, D); transformers' SAM: (N, P, M, D) or None.
        dense_prompt_embeddings: (P, D, H'', W''); transformers' SAM: (N, D, H'', W'').
        image_pe: (1, D, H'', W'') of `prompt_encoder.get_dense_pe()`, as Meta's code calls it.
        image_positional_embeddings: The same, as transformers' SAM calls it.
        multimask_output: True for the multiple masks, False for the single one.

    Returns:
        Mask logits (P, K, H', W') and qualities (P, K); transformers' SAM: (N, P, K, H', W') and
        (N, P, K).
    """
    positions = image_positional_embeddings if image_pe is None else image_pe
    if positions is None:
        raise ValueError("image_pe is missing: prompt_encoder.get_dense_pe() gives it.")
    tokens, dense = sparse_prompt_embeddings, dense_prompt_embeddings
    is_metas = tokens is not None and tokens.ndim == 3
    if is_metas and tokens is not None:
        axis = 0 if len(image_embeddings) == 1 else 1
        tokens, dense = tokens.unsqueeze(axis), dense.unsqueeze(axis)
    else:
        dense = dense[:, None]
    selection = slice(1, None) if multimask_output else slice(0, 1)
    masks, scores = decoder(
        image_embeddings, positions[0].permute(1, 2, 0), tokens, dense, None, selection
    )
    return (masks.flatten(0, 1), scores.flatten(0, 1)) if is_metas else (masks, scores)


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
