"""The two-way transformer of the mask decoder in Keras, laid out as in `two_way_transformer.py`.

Shapes: N images, P prompt sets of an image, T tokens of a prompt set, L positions of the image, D
the embedding width. S is 1 where all prompt sets still share the image's tokens, and P otherwise.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A, "Lightweight mask
decoder".
"""

from typing import Any

from keras import layers, ops

from .configuration_segment_anything import DECODER_DOWNSAMPLING, SegmentAnythingModelConfig
from .layers_tf import Norm, Perceptron, attend, dense, hiding


class DecoderAttention(layers.Layer):
    """Multi-head attention whose inner width may be smaller than that of its input."""

    def __init__(
        self, config: SegmentAnythingModelConfig, downsampling: int = DECODER_DOWNSAMPLING
    ) -> None:
        """Projects to the embedding width over `downsampling`, and back."""
        super().__init__()
        self.width, self.heads = config.embed_dim, config.decoder_nb_heads
        self.inner = self.width // downsampling
        self.q_proj, self.k_proj = dense(self.inner), dense(self.inner)
        self.v_proj, self.out_proj = dense(self.inner), dense(self.width)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            layer.build((None, self.width))
        self.out_proj.build((None, self.inner))
        self.built = True

    def call(self, query: Any, key: Any, value: Any, exists: Any = None) -> Any:
        """Values weighted by how well their keys fit the queries: (N, P, T, D).

        Args:
            query: (N, P or 1, T, D).
            key: (N, P or 1, n, D).
            value: (N, P or 1, n, D).
            exists: (N, P, n), False where a key is padding, or None.
        """
        query, key = self.q_proj(query), self.k_proj(key)
        query, key, value = (
            by_head(projected, self.heads) for projected in (query, key, self.v_proj(value))
        )
        bias = None
        if exists is not None:
            bias = ops.expand_dims(hiding(exists, query.dtype), (2, 3))
        mixed = attend(query, key, value, bias, None, False)  # (N, P, h, T, c)
        images, sets, _, count, _ = ops.shape(mixed)
        mixed = ops.reshape(ops.swapaxes(mixed, 2, 3), (images, sets, count, self.inner))
        return self.out_proj(mixed)


def by_head(tokens: Any, heads: int) -> Any:
    """Tokens (N, P, T, h c) as (N, P, h, T, c)."""
    *sizes, width = ops.shape(tokens)
    return ops.swapaxes(ops.reshape(tokens, (*sizes, heads, width // heads)), 2, 3)


class TwoWayBlock(layers.Layer):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, config: SegmentAnythingModelConfig, is_first: bool) -> None:
        """The first block's tokens are their own positions: it does not add them again."""
        super().__init__()
        self.width = config.embed_dim
        self.self_attn = DecoderAttention(config, downsampling=1)
        self.norm1 = Norm(1e-5)
        self.cross_attn_token_to_image = DecoderAttention(config)
        self.norm2 = Norm(1e-5)
        self.mlp = Perceptron(self.width, config.decoder_mlp_channels, ops.relu)
        self.norm3 = Norm(1e-5)
        self.norm4 = Norm(1e-5)
        self.cross_attn_image_to_token = DecoderAttention(config)
        self.is_first = is_first

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for norm in (self.norm1, self.norm2, self.norm3, self.norm4):
            norm.build((None, None, None, self.width))
        self.self_attn.build()
        self.cross_attn_token_to_image.build()
        self.mlp.build()
        self.cross_attn_image_to_token.build()
        self.built = True

    def call(
        self,
        tokens: Any,
        image: Any,
        token_positions: Any,
        image_positions: Any,
        exists: Any,
    ) -> tuple[Any, Any]:
        """Refines the tokens (N, P, T, D) and the image's: (N, S, L, D) to (N, P, L, D).

        Args:
            tokens: (N, P, T, D).
            image: (N, S, L, D).
            token_positions: (N, P, T, D).
            image_positions: (L, D).
            exists: (N, P, T), False where a token is padding, or None.
        """
        tokens = self.attend_to_tokens(tokens, token_positions, exists)
        seen = self.cross_attn_token_to_image(
            tokens + token_positions, image + image_positions, image
        )
        tokens = self.perceive(tokens + seen)
        seen = self.cross_attn_image_to_token(
            image + image_positions, tokens + token_positions, tokens, exists
        )
        return tokens, self.norm4(image + seen)

    def attend_to_tokens(self, tokens: Any, positions: Any, exists: Any) -> Any:
        """What a prompt set's tokens (N, P, T, D) see in each other."""
        placed = tokens if self.is_first else tokens + positions
        seen = self.self_attn(placed, placed, tokens, exists)
        return self.norm1(seen if self.is_first else tokens + seen)

    def perceive(self, tokens: Any) -> Any:
        """What the perceptron makes of each token (N, P, T, D) on its own."""
        tokens = self.norm2(tokens)
        return self.norm3(tokens + self.mlp(tokens))


class TwoWayTransformer(layers.Layer):
    """Lets the tokens of a prompt set and the image inform each other."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the blocks, and the tokens' last look at the image."""
        super().__init__()
        self.width = config.embed_dim
        self.layers = [TwoWayBlock(config, i == 0) for i in range(config.decoder_nb_blocks)]
        self.final_attn_token_to_image = DecoderAttention(config)
        self.norm_final_attn = Norm(1e-5)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer in self.layers:
            layer.build()
        self.final_attn_token_to_image.build()
        self.norm_final_attn.build((None, None, None, self.width))
        self.built = True

    def call(self, tokens: Any, image: Any, image_positions: Any, exists: Any) -> tuple[Any, Any]:
        """Tokens (N, P, T, D) and image (N, P, L, D) after all blocks.

        Args:
            tokens: (N, P, T, D), output tokens and prompts.
            image: (N, S, L, D).
            image_positions: (L, D).
            exists: (N, P, T), False where a token is padding, or None.
        """
        positions = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, positions, image_positions, exists)
        seen = self.final_attn_token_to_image(tokens + positions, image + image_positions, image)
        return self.norm_final_attn(tokens + seen), image
