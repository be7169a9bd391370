"""The image encoder: a vision transformer with windowed and global attention.

Shapes: N images, (H'', W'') the grid of image embeddings, C the width of the tokens, D that of the
embeddings.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A; Li et al., "Exploring
Plain Vision Transformer Backbones for Object Detection", arXiv:2203.16527.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_segment_anything import ENCODER_NORM_EPS, SegmentAnythingModelConfig
from .layers import (
    ACTIVATIONS,
    Perceptron,
    attend,
    biases_are_fused,
    drop_path,
    embedding_neck,
    is_in_pieces,
    is_plain,
    is_traced,
    linear,
    slices,
)
from .layers import product as matrix_product
from .outputs import Record, SegmentAnythingVisionOutput

_SCORES_AT_ONCE = {True: 1 << 21, False: 1 << 26}
"""Attention scores that the encoder holds at one time, on a processor and elsewhere: 8 MiB of them
in fp32 stay in a processor's cache. All scores of a global block would be 800 MB."""

_FUSED_CHANNELS = 256
"""Channels of queries and keys up to which PyTorch has an attention that writes no scores out."""

_ROWS_AT_ONCE = 16
"""Rows of tokens that go through a global block's perceptron at a time, on a processor."""


def _relative_positions(table: Tensor, size: int) -> Tensor:
    """Rows of a relative-position table for every query and key of an axis: (size, size, c).

    A table made for another size is resampled linearly, as Meta's code does.
    """
    distances = 2 * size - 1
    if table.shape[0] != distances:
        resampled = F.interpolate(table.T[None].float(), distances, mode="linear")
        table = resampled[0].T.to(table.dtype)
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions[None, :] + (size - 1)]


class EncoderAttention(nn.Module):
    """Multi-head attention inside windows (or one window of the whole grid).

    Relative positions add to the scores, decomposed by axis (arXiv:2112.01526).
    """

    def __init__(self, config: SegmentAnythingModelConfig, is_global: bool) -> None:
        """Makes the tables of relative positions for the grid or for the window."""
        super().__init__()
        width = config.encoder_embed_dim
        self.config = config
        self.heads = config.encoder_nb_heads
        self.window_size = 0 if is_global else config.encoder_window_size
        self.drop_attention = config.encoder_attn_drop_rate
        self.qkv = nn.Linear(width, 3 * width, bias=config.encoder_qkv_bias)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(config.encoder_drop_rate)
        window_h, window_w = self._window_hw(config.grid_size())
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * window_h - 1, width // self.heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * window_w - 1, width // self.heads))

    def _window_hw(self, grid_hw: tuple[int, int]) -> tuple[int, int]:
        return (self.window_size, self.window_size) if self.window_size else grid_hw

    def forward(self, tokens: Tensor, record: Record | None = None) -> Tensor:
        """Mixes the tokens of each window: (N, H'', W'', C) to the same shape."""
        grid_h, grid_w = tokens.shape[1:3]
        window_hw = self.window_size or grid_h, self.window_size or grid_w
        query, key, value = self._windows(self._project(tokens, window_hw), window_hw)
        mixed = self._mix(query, key, value, window_hw, record)  # (N * windows * heads, h * w, c)
        mixed = self._grid(mixed, tokens.shape, window_hw)
        return self.drop(linear(self.proj, mixed[:, :grid_h, :grid_w]))

    def _windows(self, qkv: Tensor, window_hw: tuple[int, int]) -> tuple[Tensor, ...]:
        """Queries, keys and values by window: three (N * windows * heads, h * w, c)."""
        window_h, window_w = window_hw
        split = qkv.unflatten(1, (-1, window_h)).unflatten(3, (-1, window_w))
        split = split.unflatten(5, (3, self.heads, -1))
        # (N, rows, h, columns, w, 3, heads, c) -> (3, N, rows, columns, heads, h, w, c)
        split = split.permute(5, 0, 1, 3, 6, 2, 4, 7)
        return split.flatten(5, 6).flatten(1, 4).unbind(0)

    def _project(self, tokens: Tensor, window_hw: tuple[int, int]) -> Tensor:
        """Queries, keys and values (N, H'', W'', 3 C) of a grid that windows fill.

        Where the tokens do not fill the last windows, Meta's code appends zeros and projects them
        as well. What that gives is the bias, as long as the layer is a plain one.
        """
        window_h, window_w = window_hw
        pad_h, pad_w = -tokens.shape[1] % window_h, -tokens.shape[2] % window_w
        margins = (0, 0, 0, pad_w, 0, pad_h)
        if not (pad_h or pad_w):
            return linear(self.qkv, tokens)
        if not is_plain(self.qkv):
            return self.qkv(F.pad(tokens, margins))
        padded = F.pad(linear(self.qkv, tokens), margins)
        if self.qkv.bias is None:
            return padded
        is_padding = padded.new_ones(padded.shape[1:3], dtype=torch.bool)
        is_padding[: tokens.shape[1], : tokens.shape[2]] = False
        return torch.where(is_padding[..., None], self.qkv.bias, padded)

    def _mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window_hw: tuple[int, int],
        record: Record | None = None,
    ) -> Tensor:
        """Attention with relative positions, for some heads or some rows of queries at a time."""
        window_h, window_w = window_hw
        queries = query.unflatten(1, window_hw)  # (B, h, w, c), B = N * windows * heads
        positions_h = _relative_positions(self.rel_pos_h, window_h).to(query.dtype)
        positions_w = _relative_positions(self.rel_pos_w, window_w).to(query.dtype)
        bias_h = torch.einsum("bhwc,hkc->bhwk", queries, positions_h)
        bias_w = torch.einsum("bhwc,wkc->bhwk", queries, positions_w)
        if record is not None and record.keeps_attentions:
            return self._mix_recorded(query, key, value, (bias_h, bias_w), record)
        if is_in_pieces(self, query):
            return self._mix_products(queries, key, value, bias_h, bias_w)
        is_fused = self.config._attn_implementation != "eager" and biases_are_fused(query)
        if is_fused and query.shape[-1] + window_h + window_w <= _FUSED_CHANNELS:
            return self._mix_fused(query, key, value, bias_h, bias_w)
        bias_h, bias_w = bias_h[..., :, None], bias_w[..., None, :]
        parts = []
        for some, rows in self._parts(query, window_hw):
            bias = bias_h[some, rows] + bias_w[some, rows]  # (b, rows, w, h, w)
            mixed = attend(
                queries[some, rows].flatten(1, 2),
                key[some],
                value[some],
                bias.flatten(3, 4).flatten(1, 2),
                self.drop_attention if self.training else 0.0,
                self.config._attn_implementation,
            )
            parts.append(mixed.flatten(0, 1))  # the last rows may be fewer
        return torch.cat(parts).view_as(query)

    def _mix_recorded(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        biases: tuple[Tensor, Tensor],
        record: Record,
    ) -> Tensor:
        """As `_mix`, with every attention written out and kept."""
        bias = biases[0][..., :, None] + biases[1][..., None, :]  # (B, h, w, h, w)
        scores = query * query.shape[-1] ** -0.5 @ key.mT + bias.flatten(3, 4).flatten(1, 2)
        attention = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        record.attentions.append(attention)
        return F.dropout(attention, self.drop_attention, self.training) @ value

    def _mix_products(
        self, queries: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
    ) -> Tensor:
        """As `_mix`, where oneDNN multiplies.

        The bias of a query for a key is a number for the key's row and one for its column: each is
        added in place, while the scores are in the cache.
        """
        queries = queries * queries.shape[-1] ** -0.5
        values = value.mT.contiguous().mT
        parts = []
        for some, rows in self._parts(key, (queries.shape[1], queries.shape[2])):
            scores = matrix_product(queries[some, rows].flatten(1, 2), key[some].mT)
            by_axis = scores.view(*bias_h[some, rows].shape, bias_w.shape[-1])
            by_axis.add_(bias_h[some, rows, :, :, None]).add_(bias_w[some, rows, :, None])
            parts.append(matrix_product(scores.softmax(-1), values[some]).flatten(0, 1))
        return torch.cat(parts).view_as(value)

    def _mix_fused(
        self, query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
    ) -> Tensor:
        """As `_mix`, in one fused attention that writes neither scores nor biases out.

        A bias is a product as well: of the query's biases for every row and column with zeros and
        a one for the row, and for the column, that the key is in.
        """
        (height, width), channels = (bias_h.shape[-1], bias_w.shape[-1]), query.shape[-1]
        rows = torch.eye(height, device=key.device, dtype=key.dtype).repeat_interleave(width, dim=0)
        columns = torch.eye(width, device=key.device, dtype=key.dtype).repeat(height, 1)
        places = torch.cat([rows, columns], dim=-1).expand(len(key), -1, -1)  # (B, h * w, h + w)
        scaled = query * channels**-0.5
        query = torch.cat([scaled, bias_h.flatten(1, 2), bias_w.flatten(1, 2)], dim=-1)
        mixed = F.scaled_dot_product_attention(
            query.unflatten(0, (-1, self.heads)),
            torch.cat([key, places], dim=-1).unflatten(0, (-1, self.heads)),
            F.pad(value, (0, height + width)).unflatten(0, (-1, self.heads)),
            dropout_p=self.drop_attention if self.training else 0.0,
            scale=1.0,
        )
        return mixed.flatten(0, 1)[..., :channels]

    def _parts(self, query: Tensor, window_hw: tuple[int, int]) -> list[tuple[slice, slice]]:
        """Which of (B, h, w, c) queries attend together: several B with all rows, or few rows."""
        everything = slice(None)
        if is_traced():
            return [(everything, everything)]
        (window_h, window_w), keys = window_hw, query.shape[1]
        scores = _SCORES_AT_ONCE[query.device.type == "cpu"]
        length, rows = scores // keys**2, max(1, scores // (window_w * keys))
        if length:
            return [(part, everything) for part in slices(len(query), length)]
        starts = product(range(len(query)), range(0, window_h, rows))
        return [(slice(one, one + 1), slice(row, row + rows)) for one, row in starts]

    def _grid(self, mixed: Tensor, shape: torch.Size, window_hw: tuple[int, int]) -> Tensor:
        """Puts windows back side by side: (N, padded H'', padded W'', C)."""
        window_h, window_w = window_hw
        windows = (shape[0], -(-shape[1] // window_h), -(-shape[2] // window_w), self.heads)
        grid = mixed.unflatten(0, windows).unflatten(4, window_hw)
        # (N, rows, columns, heads, h, w, c) -> (N, rows, h, columns, w, heads, c)
        return grid.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class EncoderBlock(GradientCheckpointingLayer):
    """Attention and perceptron, each normalised before and added to its input."""

    def __init__(self, config: SegmentAnythingModelConfig, index: int) -> None:
        """Attends globally where the configuration lists `index`, else in windows."""
        super().__init__()
        width, eps = config.encoder_embed_dim, ENCODER_NORM_EPS[config.encoder_norm_layer]
        is_global = index in config.encoder_global_attn_indices or not config.encoder_window_size
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = EncoderAttention(config, is_global)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Perceptron(
            width,
            config.encoder_hidden(width),
            ACTIVATIONS[config.encoder_act_layer],
            config.encoder_drop_rate,
        )
        last = max(1, config.encoder_nb_blocks - 1)
        self.drop_path_rate = config.encoder_drop_path_rate * index / last

    def forward(self, tokens: Tensor, record: Record | None = None) -> Tensor:
        """Refines the tokens: (N, H'', W'', C) to the same shape.

        On a processor, strips of windows one after another, which do not see each other. What is
        made of a strip stays in the cache, where that of all tokens would not.
        """
        if record is not None or not is_in_pieces(self, tokens):
            return self._perceive(self._attend(tokens, record))
        if self.attn.window_size:
            strips = tokens.split(self.attn.window_size, dim=1)
            return torch.cat([self._perceive(self._attend(strip)) for strip in strips], dim=1)
        strips = self._attend(tokens).split(_ROWS_AT_ONCE, dim=1)
        return torch.cat([self._perceive(strip) for strip in strips], dim=1)

    def _attend(self, tokens: Tensor, record: Record | None = None) -> Tensor:
        normalised = self.norm1(tokens)
        mixed = self.attn(normalised) if record is None else self.attn(normalised, record)
        return tokens + drop_path(mixed, self.drop_path_rate, self.training)

    def _perceive(self, tokens: Tensor) -> Tensor:
        return tokens + drop_path(self.mlp(self.norm2(tokens)), self.drop_path_rate, self.training)


class PatchEmbedding(nn.Module):
    """One token for each patch of the image."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """A convolution whose kernel and stride are the patch size."""
        super().__init__()
        patch = config.encoder_patch_size
        self.proj = nn.Conv2d(config.in_channels, config.encoder_embed_dim, patch, patch)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Tokens (N, H'', W'', C) of images (N, C, H, W)."""
        return self.proj(pixel_values).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Vision transformer with windowed and global attention, and a convolutional neck."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the blocks that the configuration describes."""
        super().__init__()
        width = config.encoder_embed_dim
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, *config.grid_size(), width))
        self.drop = nn.Dropout(config.encoder_drop_rate)
        self.blocks = nn.ModuleList(
            EncoderBlock(config, index) for index in range(config.encoder_nb_blocks)
        )
        self.neck = embedding_neck(width, config.embed_dim)

    def forward(self, pixel_values: Tensor, record: Record | None = None) -> Tensor:
        """Image embeddings (N, D, H'', W'') of normalised, padded images (N, C, H, W).

        Args:
            pixel_values: The images.
            record: Keeps hidden states and attentions, if given.
        """
        if record is None and is_in_pieces(self, pixel_values):  # a batch would win nothing there
            return torch.cat([self._encode(image) for image in pixel_values.split(1)])
        return self._encode(pixel_values, record)

    def _encode(self, pixel_values: Tensor, record: Record | None = None) -> Tensor:
        tokens = self.patch_embed(pixel_values)
        tokens = self.drop(tokens + self._positions(tokens.shape[1], tokens.shape[2]))
        for block in self.blocks:
            if record is not None and record.keeps_hidden_states:
                record.hidden_states.append(tokens)
            tokens = block(tokens) if record is None else block(tokens, record)
        if record is not None and record.keeps_hidden_states:
            record.hidden_states.append(tokens)
        return self.neck(tokens.permute(0, 3, 1, 2))

    def _positions(self, grid_h: int, grid_w: int) -> Tensor:
        """Absolute positions, resampled bilinearly for a grid of another size."""
        if self.pos_embed.shape[1:3] == (grid_h, grid_w):
            return self.pos_embed
        channels_first = self.pos_embed.permute(0, 3, 1, 2).float()
        resampled = F.interpolate(channels_first, (grid_h, grid_w), mode="bilinear")
        return resampled.permute(0, 2, 3, 1).to(self.pos_embed.dtype)


class VisionEncoder(nn.Module):
    """The image encoder as transformers' SAM calls it: the same layers, more to return."""

    def __init__(self, image_encoder: ImageEncoder) -> None:
        """Wraps the encoder, which stays where it is."""
        super().__init__()
        self.image_encoder = image_encoder

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> SegmentAnythingVisionOutput | tuple[Tensor | tuple[Tensor, ...], ...]:
        """Image embeddings, and what else is asked for.

        Args:
            pixel_values: (N, C, H, W) images, resized, normalised and padded.
            output_attentions: Whether to return the attention of each block.
            output_hidden_states: Whether to return the tokens between the blocks.
            return_dict: False for a tuple.
        """
        record = Record(output_attentions, output_hidden_states)
        is_asked = output_attentions or output_hidden_states
        embeddings = self.image_encoder(pixel_values, *([record] if is_asked else []))
        output = SegmentAnythingVisionOutput(embeddings, *record.of_encoder())
        return output if return_dict else output.to_tuple()
