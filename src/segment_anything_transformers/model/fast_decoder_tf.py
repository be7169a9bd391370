"""The mask decoder in Keras in a form that is fast on a processor, laid out as `fast_decoder.py`.

It computes what `mask_decoder_tf.py` computes, with the same weights, and equal up to rounding, but
never writes the image's tokens out for a prompt. It reads weights instead of calling layers, so it
takes over only where every layer is a plain one and nothing learns.

Shapes: N images, P prompt sets of an image, T tokens of a prompt set, L positions of the image, D
the embedding width, h heads of c channels, m rows. S is P where masks tell the prompt sets' images
apart, and 1 where they share the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from keras import layers, ops

from .configuration_segment_anything import MASK_UPSCALING
from .layers_tf import Norm, affine, centred, hiding
from .two_way_transformer_tf import DecoderAttention, TwoWayBlock, TwoWayTransformer, by_head


class PromptedImage(NamedTuple):
    """The image's tokens as each prompt set sees them, never written out.

    Whatever a prompt does to them, the tokens (N, P, L, D) remain a scaled copy of tokens that all
    prompt sets share, plus weighted sums of a few rows:

        scale * shared + weights^T rows + bias

    An attention to T prompt tokens adds h (T - 1) rows, since its output is such a sum; layer norm
    centres the rows and divides weights and scale. Every product with the tokens becomes one with
    the shared tokens, made once an image, and a small one with the rows.
    """

    scale: Any  # (N, P, 1, L)
    weights: Any  # (N, P, m, L)
    rows: Any  # (N, P, m, D)
    bias: Any  # (D)
    values: tuple[Any, ...]  # (N, P, h, t, c) of each attention that added rows


class ProjectedImage(NamedTuple):
    """A dense layer's output for the tokens that all prompt sets share, by head."""

    kernel: Any  # (D, h c), of the layer
    bias: Any  # (h c), of the layer
    shared: Any  # (N, S, h, c, L), S is P where masks tell the prompt sets' images apart, else 1
    positions: Any  # (h, c, L); None where the shared tokens have them added already

    @classmethod
    def of(cls, layer: layers.Dense, heads: int, shared: Any, positions: Any = None) -> Self:
        """Projects shared tokens (N, S, L, D) and positions (L, D), without the layer's bias."""
        kernel, bias = (ops.cast(weight, shared.dtype) for weight in (layer.kernel, layer.bias))
        by_head = (heads, kernel.shape[1] // heads, shared.shape[2])
        projected = ops.matmul(ops.transpose(kernel), ops.swapaxes(shared, 2, 3))
        projected = ops.reshape(projected, (*ops.shape(shared)[:2], *by_head))
        if positions is not None:
            positions = ops.matmul(ops.transpose(kernel), ops.transpose(positions))
            positions = ops.reshape(positions, by_head)
        return cls(kernel, bias, projected, positions)

    def scores(self, vectors: Any, image: PromptedImage | None) -> Any:
        """Products (N, P, h, T, L) of vectors (N, P, h, T, c) with every projected image token.

        What adds the same to all tokens of the image, its bias and the layer's, is left out.
        """
        of_shared = ops.matmul(vectors, self.shared)
        if image is None:
            return of_shared
        images, sets, heads, count, width = ops.shape(vectors)
        kernel = ops.transpose(ops.reshape(self.kernel, (-1, heads, width)), (1, 2, 0))
        vectors_of_rows = ops.reshape(
            ops.matmul(vectors, kernel), (images, sets, heads * count, kernel.shape[2])
        )
        of_rows = ops.matmul(vectors_of_rows, ops.swapaxes(image.rows, 2, 3))
        of_rows = ops.reshape(ops.matmul(of_rows, image.weights), ops.shape(of_shared))
        scores = of_rows + of_shared * ops.expand_dims(image.scale, 2)
        if self.positions is None:
            return scores
        return scores + ops.matmul(vectors, self.positions)

    def constant(self, image: PromptedImage | None) -> Any:
        """What the layer adds to all tokens of the image alike: (h, 1, c)."""
        bias = self.bias
        if image is not None:
            bias = bias + ops.matmul(image.bias[None], self.kernel)[0]
        return ops.reshape(bias, (self.shared.shape[2], 1, -1))

    def offsets(self, vectors: Any, image: PromptedImage | None) -> Any:
        """What `scores` leaves out: (N, P, h, T, 1)."""
        return ops.matmul(vectors, ops.swapaxes(self.constant(image), 1, 2))

    def mix(self, attention: Any, image: PromptedImage | None) -> Any:
        """Projected image tokens weighted by attention (N, P, h, T, L): (N, P, h, T, c)."""
        values = ops.swapaxes(self.shared, 3, 4)
        if image is None:
            return ops.matmul(attention, values) + self.constant(image)
        of_shared = ops.matmul(attention * ops.expand_dims(image.scale, 2), values)
        images, sets, heads, count, length = ops.shape(attention)
        row_weights = ops.matmul(
            ops.reshape(attention, (images, sets, heads * count, length)),
            ops.swapaxes(image.weights, 2, 3),
        )  # (N, P, hT, m)
        row_weights = ops.reshape(row_weights, (images, sets, heads, count, -1))
        rows = by_head(ops.matmul(image.rows, self.kernel), heads)
        # attention sums to one
        return of_shared + ops.matmul(row_weights, rows) + self.constant(image)


def _joined(attention: DecoderAttention, mixed: Any) -> Any:
    """The output (N, P, T, D) of all heads (N, P, h, T, c)."""
    images, sets, _, count, _ = ops.shape(mixed)
    mixed = ops.reshape(ops.swapaxes(mixed, 2, 3), (images, sets, count, attention.inner))
    return attention.out_proj(mixed)


def _scale(attention: DecoderAttention) -> float:
    return float((attention.inner // attention.heads) ** -0.5)


def _tokens_to_image(
    attention: DecoderAttention,
    placed: Any,
    projected: tuple[ProjectedImage, ProjectedImage],
    image: PromptedImage | None,
) -> Any:
    """What tokens (N, P, T, D), with their positions, see in the image: (N, P, T, D)."""
    keys, values = projected
    query = by_head(attention.q_proj(placed), attention.heads) * _scale(attention)
    attended = ops.softmax(keys.scores(query, image), axis=-1)
    return _joined(attention, values.mix(attended, image))


def _image_to_tokens(
    attention: DecoderAttention,
    placed: Any,
    tokens: Any,
    queries: ProjectedImage,
    image: PromptedImage | None,
    exists: Any,
) -> tuple[Any, Any, Any]:
    """What the image sees in the tokens, as weighted sums.

    Returns:
        Weights (N, P, m, L) and values (N, P, h, m / h, c) of the rows that are summed, before the
        output projection; and what every image token sees alike (N, P, D).
    """
    key = by_head(attention.k_proj(placed), attention.heads) * _scale(attention)
    value = by_head(attention.v_proj(tokens), attention.heads)
    offsets = queries.offsets(key, image)
    if exists is not None:
        offsets = offsets + ops.expand_dims(hiding(exists, offsets.dtype), (2, 4))
    scores = queries.scores(key, image) + offsets
    # Not ops.softmax: it would copy the scores to bring the tokens to the last axis and back.
    attended = ops.exp(scores - ops.max(scores, axis=3, keepdims=True))
    attended = attended / ops.sum(attended, axis=3, keepdims=True)
    images, sets, heads, count, width = ops.shape(value)
    if isinstance(count, int) and count <= width:
        # The weights of a head sum to one, so the first token needs no row.
        first = value[:, :, :, :1]
        weights, value, alike = attended[:, :, :, 1:], value[:, :, :, 1:] - first, first
    else:  # fewer rows: a head's own channels, weighted by what it sees of the tokens
        weights = ops.matmul(ops.swapaxes(value, 3, 4), attended)
        alike = ops.zeros_like(value[:, :, :, :1])
        value = ops.eye(width, dtype=value.dtype)
        value = ops.broadcast_to(value, (images, sets, heads, width, width))
    length, count = weights.shape[4], weights.shape[3]
    weights = ops.reshape(weights, (images, sets, heads * count, length))
    return weights, value, _joined(attention, alike)[:, :, 0]


def _project_placed(
    layer: layers.Dense, heads: int, shared: Any, positions: Any, is_first: bool
) -> ProjectedImage:
    """The projection of tokens and positions, in one where nothing scales the tokens yet."""
    if is_first:
        return ProjectedImage.of(layer, heads, shared + positions)
    return ProjectedImage.of(layer, heads, shared, positions)


def _keys_and_values(
    attention: DecoderAttention, shared: Any, positions: Any, is_first: bool
) -> tuple[ProjectedImage, ProjectedImage]:
    """Keys and values of shared image tokens (N, S, L, D), for the tokens of any prompt."""
    keys = _project_placed(attention.k_proj, attention.heads, shared, positions, is_first)
    return keys, ProjectedImage.of(attention.v_proj, attention.heads, shared)


class SharedNorm(NamedTuple):
    """What `_normalised` needs to know of the tokens that all prompt sets share."""

    tokens: Any  # (N, S, L, D), centred
    squares: Any  # (N, S, 1, L) their mean squares
    directions: tuple[Any, ...]  # (N, S, h, c, L) their products with each attention's output

    @classmethod
    def of(cls, shared: Any, outputs: list[Any]) -> Self:
        """From shared tokens (N, S, L, D) and output weights (h, c, D) of the attentions so far."""
        tokens = centred(shared)
        images, sets, length, width = ops.shape(tokens)
        scaled = ops.swapaxes(tokens / width, 2, 3)
        directions = tuple(
            ops.reshape(
                ops.matmul(ops.reshape(output, (-1, width)), scaled),
                (images, sets, *output.shape[:2], length),
            )
            for output in outputs
        )
        return cls(tokens, ops.mean(ops.square(tokens), axis=-1)[:, :, None], directions)

    def products(self, rows: Any, values: tuple[Any, ...]) -> Any:
        """Mean products (N, P, m, L) of the shared tokens with the rows.

        Rows of attentions are their values times an output weight, of which the product with the
        shared tokens is known. The others, one an attention, come first.
        """
        plain = rows[:, :, : len(values)] / rows.shape[-1]
        parts = [ops.matmul(plain, ops.swapaxes(self.tokens, 2, 3))]
        for value, direction in zip(values, self.directions, strict=True):
            product = ops.matmul(value, direction)
            images, sets, heads, count, length = ops.shape(product)
            parts.append(ops.reshape(product, (images, sets, heads * count, length)))
        return ops.concatenate(parts, axis=2)


def _normalised(norm: Norm, image: PromptedImage, shared: SharedNorm) -> PromptedImage:
    """Layer norm of tokens that are never written out: of mean 0 and variance 1, then scaled.

    The variance is a quadratic form in scale and weights.
    """
    rows = centred(image.rows)
    row_products = ops.matmul(rows / rows.shape[-1], ops.swapaxes(rows, 2, 3))  # (N, P, m, m)
    products = ops.matmul(row_products, image.weights)
    products = products + 2.0 * image.scale * shared.products(rows, image.values)
    variance = ops.sum(image.weights * products, axis=2, keepdims=True)
    variance = variance + ops.square(image.scale) * shared.squares
    deviation = ops.rsqrt(ops.maximum(variance, 0.0) + norm.epsilon)
    gamma, beta = (ops.cast(weight, rows.dtype) for weight in (norm.gamma, norm.beta))
    return image._replace(
        scale=image.scale * deviation,
        weights=image.weights * deviation,
        rows=rows * gamma,
        bias=beta,
    )


def _output_weight(block: TwoWayBlock, dtype: Any) -> Any:
    """Output weights (h, c, D) of the image's attention to the tokens."""
    attention = block.cross_attn_image_to_token
    kernel = ops.cast(attention.out_proj.kernel, dtype)
    return ops.reshape(kernel, (attention.heads, -1, attention.width))


class SharedBlock(NamedTuple):
    """What a `TwoWayBlock` needs to know of the tokens that all prompt sets share."""

    keys_values: tuple[ProjectedImage, ProjectedImage]
    queries: ProjectedImage
    norm: SharedNorm

    @classmethod
    def of(
        cls, block: TwoWayBlock, shared: Any, positions: Any, outputs: list[Any]
    ) -> tuple[Self, Any, list[Any]]:
        """The part of the block's work that no prompt changes.

        Args:
            block: The block.
            shared: (N, S, L, D) image tokens.
            positions: (L, D).
            outputs: (h, c, D), output weights of the attentions of earlier blocks to the tokens.

        Returns:
            The work, and shared tokens and output weights for the next block.
        """
        to_image, to_tokens = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        outputs = [centred(output) for output in (*outputs, _output_weight(block, shared.dtype))]
        norm = SharedNorm.of(shared, outputs)
        work = cls(
            _keys_and_values(to_image, shared, positions, block.is_first),
            _project_placed(to_tokens.q_proj, to_tokens.heads, shared, positions, block.is_first),
            norm,
        )
        gamma = ops.cast(block.norm4.gamma, shared.dtype)
        return work, norm.tokens * gamma, [output * gamma for output in outputs]

    def refine(
        self,
        block: TwoWayBlock,
        tokens: Any,
        image: PromptedImage | None,
        positions: Any,
        exists: Any,
    ) -> tuple[Any, PromptedImage]:
        """Refines the tokens (N, P, T, D) and the image, which is None in the first block."""
        tokens = block.attend_to_tokens(tokens, positions, exists)
        placed = tokens + positions
        seen = _tokens_to_image(block.cross_attn_token_to_image, placed, self.keys_values, image)
        tokens = block.perceive(tokens + seen)
        image = self._attend_to_tokens(block, tokens, image, positions, exists)
        return tokens, _normalised(block.norm4, image, self.norm)

    def _attend_to_tokens(
        self,
        block: TwoWayBlock,
        tokens: Any,
        image: PromptedImage | None,
        positions: Any,
        exists: Any,
    ) -> PromptedImage:
        """The image with what it sees in the tokens added, and its bias as a row like others."""
        weights, values, alike = _image_to_tokens(
            block.cross_attn_image_to_token,
            tokens + positions,
            tokens,
            self.queries,
            image,
            exists,
        )
        rows = ops.matmul(values, _output_weight(block, values.dtype))  # (N, P, h, t, D)
        images, sets, heads, count, width = ops.shape(rows)
        rows = ops.reshape(rows, (images, sets, heads * count, width))
        ones = ops.ones_like(weights[:, :, :1])
        if image is None:
            return PromptedImage(
                ones,
                ops.concatenate([ones, weights], axis=2),
                ops.concatenate([alike[:, :, None], rows], axis=2),
                ops.zeros_like(alike[0, 0]),
                (values,),
            )
        return image._replace(
            weights=ops.concatenate([ones, image.weights, weights], axis=2),
            rows=ops.concatenate([(alike + image.bias)[:, :, None], image.rows, rows], axis=2),
            values=(*image.values, values),
        )


class SharedImage(NamedTuple):
    """The part of the decoder's work that no prompt changes."""

    blocks: tuple[SharedBlock, ...]
    last: tuple[ProjectedImage, ProjectedImage]
    upscaled: Any  # (N, S, L, D), the tokens' shared part after the first transposed convolution

    @classmethod
    def of(cls, decoder: Any, image: Any, positions: Any) -> Self:
        """Does that work for image tokens (N, S, L, D) and their positions (L, D)."""
        transformer: TwoWayTransformer = decoder.transformer
        blocks: list[SharedBlock] = []
        outputs: list[Any] = []
        for block in transformer.layers:
            shared, image, outputs = SharedBlock.of(block, image, positions, outputs)
            blocks.append(shared)
        last = _keys_and_values(transformer.final_attn_token_to_image, image, positions, False)
        kernel = decoder.output_upscaling[0].centred_matrix(image.dtype)
        return cls(tuple(blocks), last, ops.matmul(image, kernel))

    def refine(
        self, transformer: TwoWayTransformer, tokens: Any, exists: Any
    ) -> tuple[Any, PromptedImage]:
        """Tokens (N, P, T, D) and image after all blocks, see `TwoWayTransformer`."""
        positions = tokens
        image: Any = None  # as no block has changed it
        for block, shared in zip(transformer.layers, self.blocks, strict=True):
            tokens, image = shared.refine(block, tokens, image, positions, exists)
        attention = transformer.final_attn_token_to_image
        seen = _tokens_to_image(attention, tokens + positions, self.last, image)
        return transformer.norm_final_attn(tokens + seen), image


class FastPrompts(NamedTuple):
    """What is known of prompt sets before their masks are made."""

    iou_scores: Any  # (N, P, 1 + K)
    mask_tokens: Any  # (N, P, 1 + K, D)
    image: PromptedImage

    def take(self, indices: Any) -> Self:
        """Some of the prompt sets, by their numbers (n,)."""

        def some(tensor: Any) -> Any:
            return ops.take(tensor, indices, axis=1)

        scale, weights, rows, bias, _ = self.image
        image = PromptedImage(some(scale), some(weights), some(rows), bias, ())
        return self._replace(
            iou_scores=some(self.iou_scores), mask_tokens=some(self.mask_tokens), image=image
        )


class FastDecoder:
    """The fast form of a `MaskDecoder`, which shares its weights.

    Args:
        decoder: Whose layers all are plain.
    """

    def __init__(self, decoder: Any) -> None:
        """Computes nothing yet."""
        self.decoder = decoder

    def share(
        self, image_embeddings: Any, image_positions: Any, dense_embeddings: Any
    ) -> SharedImage:
        """The part of the work that no prompt but masks changes.

        Args:
            image_embeddings: (N, H'', W'', D).
            image_positions: (H'', W'', D).
            dense_embeddings: (N or 1, P or 1, H'' or 1, W'' or 1, D).
        """
        image, positions = self.decoder.image_tokens(
            image_embeddings, image_positions, dense_embeddings
        )
        # In half precision too: a processor is no slower at it, and every edge is decided here.
        image, positions = (ops.cast(part, "float32") for part in (image, positions))
        return SharedImage.of(self.decoder, image, positions)

    def decode(self, shared: SharedImage, prompt_tokens: Any, exists: Any) -> FastPrompts:
        """All that is known of the masks before they are made.

        Args:
            shared: What `share` returns.
            prompt_tokens: (N, P, M, D) or None.
            exists: (N, P, M), False where a prompt is padding, or None.
        """
        tokens, exists = self.decoder.all_tokens(
            ops.shape(shared.upscaled)[:2], prompt_tokens, exists
        )
        tokens, image = shared.refine(self.decoder.transformer, tokens, exists)
        scores = self.decoder.iou_prediction_head(tokens[:, :, 0])
        return FastPrompts(scores, tokens[:, :, 1:], image)

    def masks(
        self,
        decoded: FastPrompts,
        shared: SharedImage,
        grid_hw: tuple[int, int],
        chosen: Sequence[int],
    ) -> Any:
        """Logits (N, P, K, H', W') of the chosen masks.

        Each mask's token weighs the channels of the upscaled image. A transposed convolution of
        stride and kernel 2 is a matrix product that makes four positions of one. They stay in
        that order until the masks, which are small, are sorted.
        """
        weights = self.decoder.channel_weights(decoded.mask_tokens, chosen)
        *_, second, last_activation = self.decoder.output_upscaling
        features = self._upscaled_once(decoded.image, shared.upscaled)  # (N P 4 L, D / 4)
        kernel, bias = second.matrix(features.dtype), second.repeated_bias(features.dtype)
        features = last_activation(affine(features, kernel, bias))
        images, sets, count, depth = ops.shape(weights)
        height, width = grid_hw
        features = ops.reshape(features, (images, sets, 16 * height * width, depth))
        logits = ops.matmul(weights, ops.swapaxes(features, 2, 3))
        logits = ops.reshape(logits, (images * sets * count * height, width, 2, 2, 2, 2))
        # (N P K H'', W'', Y, X, y, x) -> (N P K H'', Y, y, W'', X, x)
        logits = ops.transpose(logits, (0, 2, 4, 1, 3, 5))
        size = (MASK_UPSCALING * height, MASK_UPSCALING * width)
        return ops.reshape(logits, (images, sets, count, *size))

    def _upscaled_once(self, image: PromptedImage, shared: Any) -> Any:
        """The image after transposed convolution, norm and activation: (N P 4 L, D / 4).

        The matrices are centred, so the norm need not. It multiplies by a diagonal matrix, which
        TensorFlow computes together with bias and activation.
        """
        first, norm, activation, *_ = self.decoder.output_upscaling
        kernel, dtype = first.centred_matrix(shared.dtype), shared.dtype
        bias = ops.matmul(image.bias[None], kernel)[0]
        bias = bias + ops.tile(centred(ops.cast(first.bias, dtype)), (4,))
        features = ops.matmul(ops.swapaxes(image.weights, 2, 3), ops.matmul(image.rows, kernel))
        features = features + ops.swapaxes(image.scale, 2, 3) * shared + bias
        features = ops.reshape(features, (-1, first.filters))
        mean = ops.full((first.filters, 1), 1.0 / first.filters)
        variance = ops.matmul(ops.square(ops.cast(features, "float32")), mean)
        features = features * ops.cast(ops.rsqrt(variance + norm.epsilon), dtype)
        gamma, beta = (ops.cast(weight, dtype) for weight in (norm.gamma, norm.beta))
        return activation(affine(features, ops.diag(gamma), beta))
