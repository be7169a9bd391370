"""The mask decoder once more, in a form that is fast on a processor: an inference engine.

It computes what `mask_decoder.py` computes, with the same weights, and equal up to rounding, but
never writes the image's tokens out for a prompt. It reads weights instead of calling layers, so it
takes over only where every layer is a plain one and nobody wants gradients.

Shapes: N images, P prompt sets of an image, T tokens of a prompt set, L positions of the image, D
the embedding width, h heads of c channels, m rows. S is P where masks tell the prompt sets' images
apart, and 1 where they share the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import affine, linear, product
from .two_way_transformer import DecoderAttention, TwoWayBlock, TwoWayTransformer, hiding


class PromptedImage(NamedTuple):
    """The image's tokens as each prompt set sees them, never written out.

    Whatever a prompt does to them, the tokens (N, P, L, D) remain a scaled copy of tokens that all
    prompt sets share, plus weighted sums of a few rows:

        scale * shared + weights^T rows + bias

    An attention to T prompt tokens adds h (T - 1) rows, since its output is such a sum; layer norm
    centres the rows and divides weights and scale. Every product with the tokens becomes one with
    the shared tokens, made once an image, and a small one with the rows.
    """

    scale: Tensor  # (N, P, 1, L)
    weights: Tensor  # (N, P, m, L)
    rows: Tensor  # (N, P, m, D)
    bias: Tensor  # (D)
    values: tuple[Tensor, ...]  # (N, h, P, t, c) of each attention that added rows


class ProjectedImage(NamedTuple):
    """A linear layer's output for the tokens that all prompt sets share, by head."""

    layer: nn.Linear
    shared: Tensor  # (N, h, S, c, L), S is P where masks tell the prompt sets' images apart, else 1
    positions: Tensor | None  # (h, c, L); None where the shared tokens have them added already

    @classmethod
    def of(
        cls, layer: nn.Linear, heads: int, shared: Tensor, positions: Tensor | None = None
    ) -> Self:
        """Projects shared tokens (N, S, L, D) and positions (L, D), without the layer's bias."""
        projected = (layer.weight @ shared.mT).unflatten(2, (heads, -1)).transpose(1, 2)
        if positions is None:
            return cls(layer, projected, None)
        return cls(layer, projected, (layer.weight @ positions.T).unflatten(0, (heads, -1)))

    @property
    def weight(self) -> Tensor:
        """The layer's weight by head: (h, c, D)."""
        return self.layer.weight.unflatten(0, (self.shared.shape[1], -1))

    def scores(self, vectors: Tensor, image: PromptedImage | None) -> Tensor:
        """Products (N, h, P, T, L) of vectors (N, h, P, T, c) with every projected image token.

        What adds the same to all tokens of the image, its bias and the layer's, is left out.
        """
        of_shared = _shared_product(vectors, self.shared)
        if image is None:
            return of_shared
        of_rows = (vectors @ self.weight[:, None]).transpose(1, 2).flatten(2, 3) @ image.rows.mT
        of_rows = product(of_rows, image.weights).unflatten(2, vectors.shape[1:4:2])
        scores = torch.addcmul(of_rows.transpose(1, 2), image.scale[:, None], of_shared)
        if self.positions is None:
            return scores
        return scores + _shared_product(vectors, self.positions[None, :, None])

    def constant(self, image: PromptedImage | None) -> Tensor:
        """What the layer adds to all tokens of the image alike: (h, 1, 1, c)."""
        bias: Tensor = self.layer.bias
        if image is not None:
            bias = F.linear(image.bias, self.layer.weight, bias)
        return bias.view(self.shared.shape[1], 1, 1, -1)

    def offsets(self, vectors: Tensor, image: PromptedImage | None) -> Tensor:
        """What `scores` leaves out: (N, h, P, T, 1)."""
        return vectors @ self.constant(image).mT

    def mix(self, attention: Tensor, image: PromptedImage | None) -> Tensor:
        """Projected image tokens weighted by attention (N, h, P, T, L): (N, h, P, T, c)."""
        if image is None:
            return _shared_product(attention, self.shared.mT) + self.constant(image)
        of_shared = _shared_product(attention * image.scale[:, None], self.shared.mT)
        by_set = attention.transpose(1, 2).flatten(2, 3)
        row_weights = product(by_set, image.weights.mT)  # (N, P, hT, m)
        row_weights = row_weights.unflatten(2, attention.shape[1:4:2]).transpose(1, 2)
        rows = (image.rows @ self.layer.weight.T).unflatten(3, (self.shared.shape[1], -1))
        mixed = of_shared + row_weights @ rows.permute(0, 3, 1, 2, 4)
        return mixed + self.constant(image)  # attention sums to one


def _shared_product(vectors: Tensor, shared: Tensor) -> Tensor:
    """Products (N, h, P, T, a) of (N, h, P, T, b) with (N, h, P or 1, b, a).

    With one shared matrix the vectors of all prompt sets line up as rows of one product.
    """
    if shared.shape[2] != 1 or vectors.shape[2] == 1:
        return vectors @ shared
    return (vectors.flatten(2, 3) @ shared[:, :, 0]).unflatten(2, vectors.shape[2:4])


def _by_head(attention: DecoderAttention, tokens: Tensor) -> Tensor:
    """Projected tokens (N, P, T, h c) as (N, h, P, T, c)."""
    return tokens.unflatten(-1, (attention.heads, -1)).permute(0, 3, 1, 2, 4)


def _joined(attention: DecoderAttention, mixed: Tensor) -> Tensor:
    """The output (N, P, T, D) of all heads (N, h, P, T, c)."""
    return linear(attention.out_proj, mixed.permute(0, 2, 3, 1, 4).flatten(3))


def _tokens_to_image(
    attention: DecoderAttention,
    placed: Tensor,
    projected: tuple[ProjectedImage, ProjectedImage],
    image: PromptedImage | None,
) -> Tensor:
    """What tokens (N, P, T, D), with their positions, see in the image: (N, P, T, D)."""
    keys, values = projected
    query = _by_head(attention, linear(attention.q_proj, placed))
    query = query * query.shape[-1] ** -0.5
    # What is equal for all keys, such as their bias, changes nothing.
    attended = keys.scores(query, image).softmax(-1)
    return _joined(attention, values.mix(attended, image))


def _image_to_tokens(
    attention: DecoderAttention,
    placed: Tensor,
    tokens: Tensor,
    queries: ProjectedImage,
    image: PromptedImage | None,
    exists: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the image sees in the tokens, as weighted sums.

    Returns:
        Weights (N, P, m, L) and values (N, h, P, m / h, c) of the rows that are summed, before the
        output projection; and what every image token sees alike (N, P, D).
    """
    key = _by_head(attention, linear(attention.k_proj, placed))
    key = key * key.shape[-1] ** -0.5
    value = _by_head(attention, linear(attention.v_proj, tokens))
    offsets = queries.offsets(key, image)
    if exists is not None:
        offsets = offsets + hiding(exists, key.dtype)[:, None, :, :, None]
    attended = (queries.scores(key, image) + offsets).softmax(3)  # (N, h, P, T, L)
    count, width = value.shape[3:]
    if count <= width:
        # The weights of a head sum to one, so the first token needs no row.
        first = value[:, :, :, :1]
        weights, value, alike = attended[:, :, :, 1:], value[:, :, :, 1:] - first, first
    else:  # fewer rows: a head's own channels, weighted by what it sees of the tokens
        weights = value.mT @ attended
        value = torch.eye(width, dtype=value.dtype, device=value.device)
        value = value.expand(*weights.shape[:3], -1, -1)
        alike = torch.zeros_like(value[:, :, :, :1])
    return weights.transpose(1, 2).flatten(2, 3), value, _joined(attention, alike)[:, :, 0]


def _project_placed(
    layer: nn.Linear, heads: int, shared: Tensor, positions: Tensor, is_first: bool
) -> ProjectedImage:
    """The projection of tokens and positions, in one where nothing scales the tokens yet."""
    if is_first:
        return ProjectedImage.of(layer, heads, shared + positions)
    return ProjectedImage.of(layer, heads, shared, positions)


def _keys_and_values(
    attention: DecoderAttention, shared: Tensor, positions: Tensor, is_first: bool
) -> tuple[ProjectedImage, ProjectedImage]:
    """Keys and values of shared image tokens (N, S, L, D), for the tokens of any prompt."""
    keys = _project_placed(attention.k_proj, attention.heads, shared, positions, is_first)
    return keys, ProjectedImage.of(attention.v_proj, attention.heads, shared)


class SharedNorm(NamedTuple):
    """What `_normalised` needs to know of the tokens that all prompt sets share."""

    tokens: Tensor  # (N, S, L, D), centred
    squares: Tensor  # (N, S, 1, L) their mean squares
    directions: tuple[Tensor, ...]  # (N, h, S, c, L) their products with each attention's output

    @classmethod
    def of(cls, shared: Tensor, outputs: Sequence[Tensor]) -> Self:
        """From shared tokens (N, S, L, D) and output weights (D, h, c) of the attentions so far."""
        tokens = _centred(shared)
        scaled = tokens / tokens.shape[-1]
        return cls(
            tokens,
            tokens.square().mean(-1)[:, :, None],
            tuple(
                (output.flatten(1).T @ scaled.mT).unflatten(2, output.shape[1:]).transpose(1, 2)
                for output in outputs
            ),
        )

    def products(self, rows: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Mean products (N, P, m, L) of the shared tokens with the rows.

        Rows of attentions are their values times an output weight, of which the product with the
        shared tokens is known. The others, one an attention, come first.
        """
        count = len(values)
        plain = rows[:, None, :, :count] / rows.shape[-1]
        parts = [_shared_product(plain, self.tokens.mT[:, None])[:, 0]]
        for value, direction in zip(values, self.directions, strict=True):
            parts.append(_shared_product(value, direction).transpose(1, 2).flatten(2, 3))
        return torch.cat(parts, dim=2)


def _normalised(norm: nn.LayerNorm, image: PromptedImage, shared: SharedNorm) -> PromptedImage:
    """Layer norm of tokens that are never written out: of mean 0 and variance 1, then scaled.

    The variance is a quadratic form in scale and weights.
    """
    rows = _centred(image.rows)
    row_products = (rows / rows.shape[-1]) @ rows.mT  # (N, P, m, m)
    products = torch.addcmul(
        product(row_products, image.weights),
        image.scale,
        shared.products(rows, image.values),
        value=2,
    )
    of_rows = (image.weights * products).sum(2, keepdim=True)
    variance = torch.addcmul(of_rows, image.scale.square(), shared.squares)
    deviation = (variance.clamp(min=0.0) + norm.eps).rsqrt()
    return image._replace(
        scale=image.scale * deviation,
        weights=image.weights * deviation,
        rows=rows * norm.weight,
        bias=norm.bias,
    )


def _centred(tokens: Tensor) -> Tensor:
    return tokens - tokens.mean(-1, keepdim=True)


def _output_weight(block: TwoWayBlock) -> Tensor:
    """Output weights (D, h, c) of the image's attention to the tokens."""
    attention = block.cross_attn_image_to_token
    return attention.out_proj.weight.unflatten(1, (attention.heads, -1))


class SharedBlock(NamedTuple):
    """What a `TwoWayBlock` needs to know of the tokens that all prompt sets share."""

    block: TwoWayBlock
    keys_values: tuple[ProjectedImage, ProjectedImage]
    queries: ProjectedImage
    norm: SharedNorm

    @classmethod
    def of(
        cls, block: TwoWayBlock, shared: Tensor, positions: Tensor, outputs: list[Tensor]
    ) -> tuple[Self, Tensor, list[Tensor]]:
        """The part of the block's work that no prompt changes.

        Args:
            block: The block.
            shared: (N, S, L, D) image tokens.
            positions: (L, D).
            outputs: (D, h, c), output weights of the attentions of earlier blocks to the tokens.

        Returns:
            The work, and shared tokens and output weights for the next block.
        """
        to_image, to_tokens = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        outputs = [*outputs, _output_weight(block)]
        outputs = [output - output.mean(0, keepdim=True) for output in outputs]
        norm = SharedNorm.of(shared, outputs)
        work = cls(
            block,
            _keys_and_values(to_image, shared, positions, block.is_first),
            _project_placed(to_tokens.q_proj, to_tokens.heads, shared, positions, block.is_first),
            norm,
        )
        weight = block.norm4.weight
        return work, norm.tokens * weight, [output * weight[:, None, None] for output in outputs]

    def refine(
        self,
        tokens: Tensor,
        image: PromptedImage | None,
        positions: Tensor,
        exists: Tensor | None,
    ) -> tuple[Tensor, PromptedImage]:
        """Refines the tokens (N, P, T, D) and the image, which is None in the first block."""
        block = self.block
        tokens = block.attend_to_tokens(tokens, positions, exists)
        placed = tokens + positions
        seen = _tokens_to_image(block.cross_attn_token_to_image, placed, self.keys_values, image)
        tokens = block.perceive(tokens + seen)
        image = self._attend_to_tokens(tokens, image, positions, exists)
        return tokens, _normalised(block.norm4, image, self.norm)

    def _attend_to_tokens(
        self,
        tokens: Tensor,
        image: PromptedImage | None,
        positions: Tensor,
        exists: Tensor | None,
    ) -> PromptedImage:
        """The image with what it sees in the tokens added, and its bias as a row like others."""
        attention = self.block.cross_attn_image_to_token
        weights, values, alike = _image_to_tokens(
            attention, tokens + positions, tokens, self.queries, image, exists
        )
        rows = values @ _output_weight(self.block).permute(1, 2, 0)[:, None]
        rows = rows.transpose(1, 2).flatten(2, 3)
        ones = torch.ones_like(weights[:, :, :1])
        if image is None:
            return PromptedImage(
                ones,
                torch.cat([ones, weights], dim=2),
                torch.cat([alike[:, :, None], rows], dim=2),
                torch.zeros_like(alike[0, 0]),
                (values,),
            )
        return image._replace(
            weights=torch.cat([ones, image.weights, weights], dim=2),
            rows=torch.cat([(alike + image.bias)[:, :, None], image.rows, rows], dim=2),
            values=(*image.values, values),
        )


class SharedImage(NamedTuple):
    """The part of the decoder's work that no prompt changes."""

    blocks: list[SharedBlock]
    last: tuple[ProjectedImage, ProjectedImage]
    upscaled: Tensor  # (N, S, L, D), the tokens' shared part after the first transposed convolution

    @classmethod
    def of(cls, decoder: Any, image: Tensor, positions: Tensor) -> Self:
        """Does that work for image tokens (N, S, L, D) and their positions (L, D)."""
        transformer: TwoWayTransformer = decoder.transformer
        blocks: list[SharedBlock] = []
        outputs: list[Tensor] = []
        block: Any
        for block in transformer.layers:
            shared, image, outputs = SharedBlock.of(block, image, positions, outputs)
            blocks.append(shared)
        last = _keys_and_values(transformer.final_attn_token_to_image, image, positions, False)
        return cls(blocks, last, image @ _first_kernel(decoder))

    def refine(
        self, transformer: TwoWayTransformer, tokens: Tensor, exists: Tensor | None
    ) -> tuple[Tensor, PromptedImage]:
        """Tokens (N, P, T, D) and image after all blocks, see `TwoWayTransformer`."""
        positions = tokens
        image: Any = None  # as no block has changed it
        for block in self.blocks:
            tokens, image = block.refine(tokens, image, positions, exists)
        attention = transformer.final_attn_token_to_image
        seen = _tokens_to_image(attention, tokens + positions, self.last, image)
        return transformer.norm_final_attn(tokens + seen), image


def _first_kernel(decoder: Any) -> Tensor:
    """The first transposed convolution as a matrix: (D, 4 D / 4)."""
    first = decoder.output_upscaling[0]
    return first.weight.permute(0, 2, 3, 1).flatten(1)


class FastPrompts(NamedTuple):
    """What is known of prompt sets before their masks are made, see `DecodedPrompts`."""

    decoder: Any
    iou_scores: Tensor  # (N, P, 1 + K)
    mask_tokens: Tensor  # (N, P, 1 + K, D)
    image: PromptedImage
    upscaled: Tensor  # (N, S, L, D), of `SharedImage`
    grid_hw: tuple[int, int]

    def split(self) -> list[Self]:
        """The prompt sets one by one: the upscaled image of one fills the cache."""
        return [self.of_sets(slice(one, one + 1)) for one in range(self.iou_scores.shape[1])]

    def of_sets(self, sets: slice | list[int]) -> Self:
        """Some of the prompt sets."""
        scale, weights, rows, bias, _ = self.image
        return self._replace(
            iou_scores=self.iou_scores[:, sets],
            mask_tokens=self.mask_tokens[:, sets],
            image=PromptedImage(scale[:, sets], weights[:, sets], rows[:, sets], bias, ()),
            upscaled=self.upscaled if self.upscaled.shape[1] == 1 else self.upscaled[:, sets],
        )

    def masks(self, chosen: Sequence[int]) -> Tensor:
        """Logits (N, P, K, H', W') of the chosen masks.

        Each mask's token weighs the channels of the upscaled image. A transposed convolution of
        stride and kernel 2 is a matrix product that makes four positions of one. They stay in
        that order until the masks, which are small, are sorted.
        """
        weights = self.decoder.channel_weights(self.mask_tokens, chosen)
        layers = self.decoder.output_upscaling
        features = layers[2](self._upscaled_once())  # (N, P, 4 L, D / 4)
        second = layers[3]
        kernel = second.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 D / 8, D / 4)
        features = affine(features, kernel, second.bias.repeat(4), gelu=True)
        features = features.unflatten(3, (4, -1)).flatten(2, 3)  # (N, P, 16 L, D / 8)
        logits = product(weights, features.mT)  # (N, P, K, 16 L)
        logits = logits.unflatten(3, (*self.grid_hw, 2, 2, 2, 2))
        # (N, P, K, H'', W'', Y, X, y, x) -> (N, P, K, H'', Y, y, W'', X, x)
        logits = logits.permute(0, 1, 2, 3, 5, 7, 4, 6, 8)
        return logits.flatten(6, 8).flatten(3, 5)

    def _upscaled_once(self) -> Tensor:
        """The image after the first transposed convolution and its norm: (N, P, 4 L, D / 4)."""
        first, norm = self.decoder.output_upscaling[:2]
        image, kernel = self.image, _first_kernel(self.decoder)
        bias = image.bias @ kernel + first.bias.repeat(4)
        features = product(image.weights.mT, image.rows @ kernel)  # (N, P, L, D)
        features = torch.addcmul(features, image.scale.mT, self.upscaled) + bias
        features = features.unflatten(3, (4, -1)).flatten(2, 3)
        return F.layer_norm(features, norm.weight.shape, norm.weight, norm.bias, norm.eps)


class FastDecoder:
    """The fast form of a `MaskDecoder`, which shares its weights.

    Args:
        decoder: Whose layers all are plain.
    """

    def __init__(self, decoder: Any) -> None:
        """Computes nothing yet."""
        self.decoder = decoder

    def decode(
        self,
        image_embeddings: Tensor,
        dense_embeddings: Tensor,
        positions: Tensor,
        tokens: Tensor,
        exists: Tensor | None,
        groups: Sequence[slice],
    ) -> Iterator[FastPrompts]:
        """All that is known of the masks before they are made, for one group after the other.

        Args:
            image_embeddings: (N, D, H'', W'').
            dense_embeddings: (N or 1, S, D, H'' or 1, W'' or 1).
            positions: (L, D).
            tokens: (N, P, T, D), output tokens and prompts.
            exists: (N, P, T), False where a token is padding, or None.
            groups: Prompt sets that are decoded together.
        """
        decoder = self.decoder
        is_shared = dense_embeddings.shape[1] == 1
        if is_shared:
            shared = self._share_once(image_embeddings, dense_embeddings, positions)
        for group in groups:
            if not is_shared:
                shared = self._share(image_embeddings, dense_embeddings[:, group], positions)
            refined, image = shared.refine(
                decoder.transformer, tokens[:, group], None if exists is None else exists[:, group]
            )
            yield FastPrompts(
                decoder,
                decoder.iou_prediction_head(refined[:, :, 0]),
                refined[:, :, 1 : 1 + decoder.masks_per_set],
                image,
                shared.upscaled,
                (image_embeddings.shape[2], image_embeddings.shape[3]),
            )

    def _share(
        self, image_embeddings: Tensor, dense_embeddings: Tensor, positions: Tensor
    ) -> SharedImage:
        image = image_embeddings[:, None] + dense_embeddings
        return SharedImage.of(self.decoder, image.flatten(3).mT, positions)

    def _share_once(
        self, image_embeddings: Tensor, dense_embeddings: Tensor, positions: Tensor
    ) -> SharedImage:
        """As `_share`; for the image and the weights of the last call, what that call found."""
        parameters = [*self.decoder.parameters()]
        given = image_embeddings, dense_embeddings, positions
        if len(image_embeddings) > 1 or any(p.is_inference() for p in parameters):
            return self._share(*given)
        weights = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        last = self.decoder.last_shared  # read once: other threads write it
        # The values, not the objects: whoever changes a tensor in place is safe.
        if last is not None and weights == last[1] and all(map(torch.equal, given, last[0])):
            return last[2]
        result = self._share(*given)
        self.decoder.last_shared = tuple(tensor.clone() for tensor in given), weights, result
        return result
