"""The two-way transformer of the mask decoder, as the paper has it.

What runs on a processor without gradients is the same in another form, see `fast_decoder.py`.

Shapes: N images, P prompt sets of an image, T tokens of a prompt set, L positions of the image, D
the embedding width. S is 1 where all prompt sets still share the image's tokens, and P otherwise.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A, "Lightweight mask
decoder".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_segment_anything import DECODER_DOWNSAMPLING, SegmentAnythingModelConfig
from .layers import Perceptron, attend, linear
from .outputs import DecoderExtras


class DecoderAttention(nn.Module):
    """Multi-head attention whose inner width may be smaller than that of its input."""

    def __init__(
        self, config: SegmentAnythingModelConfig, downsampling: int = DECODER_DOWNSAMPLING
    ) -> None:
        """Projects to the embedding width over `downsampling`, and back."""
        super().__init__()
        width = config.embed_dim
        self.config = config
        self.heads = config.decoder_nb_heads
        self.q_proj = nn.Linear(width, width // downsampling)
        self.k_proj = nn.Linear(width, width // downsampling)
        self.v_proj = nn.Linear(width, width // downsampling)
        self.out_proj = nn.Linear(width // downsampling, width)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        exists: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Values weighted by how well their keys fit the queries: (N, P, T, D).

        Args:
            query: (N, P or 1, T, D).
            key: (N, P or 1, n, D).
            value: (N, P or 1, n, D).
            exists: (N, P, n), False where a key is padding, or None.
            bias: Adds to the scores (N P, h, T, n), or None; not together with `exists`.
        """
        sets = _number_of_sets(query, key)
        query = self._by_head(linear(self.q_proj, query), sets)
        key = self._by_head(linear(self.k_proj, key), sets)
        value = self._by_head(linear(self.v_proj, value), sets)
        if exists is not None:
            bias = hiding(exists, query.dtype).flatten(0, 1)[:, None, None]
        mixed = attend(query, key, value, bias, 0.0, self.config._attn_implementation)
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, (-1, sets))
        return linear(self.out_proj, mixed)

    def _by_head(self, tokens: Tensor, sets: int) -> Tensor:
        """Projected tokens (N, P or 1, n, h c) as (N P, h, n, c)."""
        tokens = tokens.expand(-1, sets, -1, -1).flatten(0, 1)
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _number_of_sets(query: Tensor, key: Tensor) -> int:
    """P of queries (N, P or 1, T, D) and keys (N, P or 1, n, D)."""
    queries, keys = query.shape[1], key.shape[1]
    if torch.jit.is_tracing():  # these are tensors, and asking for their value makes it a constant
        return torch.maximum(queries, keys)  # type: ignore[arg-type, return-value]
    return keys if queries == 1 else queries


def hiding(exists: Tensor, dtype: torch.dtype) -> Tensor:
    """What added to scores makes an attention pass over the tokens that do not exist."""
    hidden = torch.zeros_like(exists, dtype=dtype)
    return hidden.masked_fill(~exists, torch.finfo(dtype).min)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, config: SegmentAnythingModelConfig, is_first: bool) -> None:
        """The first block's tokens are their own positions: it does not add them again."""
        super().__init__()
        width = config.embed_dim
        self.self_attn = DecoderAttention(config, downsampling=1)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = DecoderAttention(config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, config.decoder_mlp_channels, F.relu)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = DecoderAttention(config)
        self.is_first = is_first

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        token_positions: Tensor,
        image_positions: Tensor,
        exists: Tensor | None,
        extras: DecoderExtras | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Refines the tokens (N, P, T, D) and the image's: (N, S, L, D) to (N, P, L, D).

        Args:
            tokens: (N, P, T, D).
            image: (N, S, L, D).
            token_positions: (N, P, T, D).
            image_positions: (L, D).
            exists: (N, P, T), False where a token is padding, or None.
            extras: What else is asked for, or None.
        """
        tokens = self.attend_to_tokens(tokens, token_positions, exists)
        similarity = None if extras is None else extras.similarity
        seen = self.cross_attn_token_to_image(
            tokens + token_positions, image + image_positions, image, bias=similarity
        )
        tokens = self.perceive(tokens + seen)
        seen = self.cross_attn_image_to_token(
            image + image_positions, tokens + token_positions, tokens, exists
        )
        if extras is not None and extras.record is not None and extras.record.keeps_attentions:
            extras.record.decoder_attentions.append(seen.flatten(0, 1)[:, None])
        return tokens, self.norm4(image + seen)

    def attend_to_tokens(self, tokens: Tensor, positions: Tensor, exists: Tensor | None) -> Tensor:
        """What a prompt set's tokens (N, P, T, D) see in each other."""
        placed = tokens if self.is_first else tokens + positions
        seen = self.self_attn(placed, placed, tokens, exists)
        return self.norm1(seen if self.is_first else tokens + seen)

    def perceive(self, tokens: Tensor) -> Tensor:
        """What the perceptron makes of each token (N, P, T, D) on its own."""
        tokens = self.norm2(tokens)
        return self.norm3(tokens + self.mlp(tokens))


class TwoWayTransformer(nn.Module):
    """Lets the tokens of a prompt set and the image inform each other."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the blocks, and the tokens' last look at the image."""
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(config, is_first=index == 0) for index in range(config.decoder_nb_blocks)
        )
        self.final_attn_token_to_image = DecoderAttention(config)
        self.norm_final_attn = nn.LayerNorm(config.embed_dim)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        image_positions: Tensor,
        exists: Tensor | None = None,
        extras: DecoderExtras | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (N, P, T, D) and image (N, P, L, D) after all blocks.

        Args:
            tokens: (N, P, T, D), output tokens and prompts.
            image: (N, S, L, D).
            image_positions: (L, D).
            exists: (N, P, T), False where a token is padding, or None.
            extras: What else is asked for, or None.
        """
        target = None if extras is None else extras.target
        positions = tokens = tokens if target is None else tokens + target
        for index, layer in enumerate(self.layers):
            if target is not None and index:
                tokens = tokens + target
            tokens, image = layer(tokens, image, positions, image_positions, exists, extras)
        seen = self.final_attn_token_to_image(tokens + positions, image + image_positions, image)
        return self.norm_final_attn(tokens + seen), image
