"""The mask decoder in Keras, laid out as in `mask_decoder.py`.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A, "Lightweight mask
decoder".
"""

from collections.abc import Sequence
from typing import Any

from keras import layers, ops

from .configuration_segment_anything import SegmentAnythingModelConfig
from .layers_tf import (
    Embedding,
    Norm,
    Perceptron,
    Upscaling,
    build_chain,
    chain,
    dense,
    gelu,
    is_on_cpu,
    is_plain,
)
from .two_way_transformer_tf import DecoderAttention, TwoWayBlock, TwoWayTransformer


class LayeredPerceptron(layers.Layer):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        """Maps `width` to `out` through `depth` layers."""
        super().__init__()
        self.widths = [width, *[hidden] * (depth - 1), out]
        self.layers = [dense(after) for after in self.widths[1:]]

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer, before in zip(self.layers, self.widths, strict=False):
            layer.build((None, before))
        self.built = True

    def call(self, x: Any) -> Any:
        """Transforms the last axis."""
        for layer in self.layers[:-1]:
            x = ops.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(layers.Layer):
    """Predicts masks, and the quality of each, from image and prompts."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes one output token for each mask and one for their quality."""
        super().__init__()
        self.width, self.masks_per_set = config.embed_dim, config.nb_multimask_outputs + 1
        width = self.width
        self.transformer = TwoWayTransformer(config)
        self.iou_token = Embedding(1, width)
        self.mask_tokens = Embedding(self.masks_per_set, width)
        self.output_upscaling = [
            Upscaling(width // 4),
            Norm(),
            gelu(),
            Upscaling(width // 8),
            gelu(),
        ]
        self.output_hypernetworks_mlps = [
            LayeredPerceptron(width, width, width // 8, 3) for _ in range(self.masks_per_set)
        ]
        self.iou_prediction_head = LayeredPerceptron(
            width, config.decoder_iou_hidden_dim, self.masks_per_set, config.decoder_iou_head_depth
        )

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.transformer.build()
        build_chain(self.output_upscaling, (None, 1, 1, self.width))
        for perceptron in (*self.output_hypernetworks_mlps, self.iou_prediction_head):
            perceptron.build()
        self.built = True

    def call(
        self,
        image_embeddings: Any,
        image_positions: Any,
        prompt_tokens: Any,
        dense_embeddings: Any,
        exists: Any,
        selection: slice,
    ) -> tuple[Any, Any]:
        """Predicts the selected masks of every prompt set.

        Args:
            image_embeddings: (N, H'', W'', D).
            image_positions: (H'', W'', D).
            prompt_tokens: (N, P, M, D) or None.
            dense_embeddings: (N or 1, P or 1, H'' or 1, W'' or 1, D).
            exists: (N, P, M), False where a prompt is padding, or None.
            selection: Which of the masks: 0 is the single one, the others are the multiple ones.

        Returns:
            Mask logits (N, P, K, H', W') and predicted qualities (N, P, K).
        """
        grid_hw = tuple(image_embeddings.shape[1:3])
        image, positions = self.image_tokens(image_embeddings, image_positions, dense_embeddings)
        tokens, exists = self.all_tokens(ops.shape(image)[:2], prompt_tokens, exists)
        tokens, image = self.transformer(tokens, image, positions, exists)
        chosen = range(self.masks_per_set)[selection]
        scores = self.iou_prediction_head(tokens[:, :, 0])[..., selection]
        return self._masks(tokens[:, :, 1:], image, grid_hw, chosen), scores

    def image_tokens(
        self, image_embeddings: Any, image_positions: Any, dense_embeddings: Any
    ) -> tuple[Any, Any]:
        """Tokens of the image with the masks of prompts (N, S, L, D), and positions (L, D).

        Takes what `call` takes; S is P where masks tell the prompt sets' images apart, else 1.
        """
        image = ops.expand_dims(image_embeddings, 1) + dense_embeddings
        images, sets, height, width, depth = ops.shape(image)
        image = ops.reshape(image, (images, sets, height * width, depth))
        positions = ops.reshape(image_positions, (height * width, depth))
        return image, ops.cast(positions, image.dtype)

    def all_tokens(
        self, images_and_sets: Sequence[Any], prompt_tokens: Any, exists: Any
    ) -> tuple[Any, Any]:
        """Output tokens and those of the prompts (N, P, T, D), and which of them exist.

        Args:
            images_and_sets: N, and P where there are no prompt tokens.
            prompt_tokens: (N, P, M, D) or None.
            exists: (N, P, M) or None.
        """
        images, sets = images_and_sets
        outputs = ops.concatenate([self.iou_token.vectors, self.mask_tokens.vectors], axis=0)
        if prompt_tokens is not None:
            sets = ops.shape(prompt_tokens)[1]
        tokens = ops.broadcast_to(outputs, (images, sets, *outputs.shape))
        if prompt_tokens is None:
            return tokens, None
        always = ops.ones((images, sets, outputs.shape[0]), "bool")
        tokens = ops.concatenate([tokens, prompt_tokens], axis=2)
        return tokens, ops.concatenate([always, exists], axis=2)

    def channel_weights(self, mask_tokens: Any, chosen: Sequence[int]) -> Any:
        """Weights (N, P, K, D / 8) of the upscaled image's channels, for the chosen masks."""
        perceptrons = self.output_hypernetworks_mlps
        return ops.stack([perceptrons[k](mask_tokens[:, :, k]) for k in chosen], axis=2)

    def _masks(
        self, mask_tokens: Any, image: Any, grid_hw: tuple[int, int], chosen: Sequence[int]
    ) -> Any:
        """Logits (N, P, K, H', W') of the chosen masks: tokens weigh the upscaled image."""
        weights = self.channel_weights(mask_tokens, chosen)
        upscaled = chain(self.output_upscaling, ops.reshape(image, (-1, *grid_hw, self.width)))
        images, sets, count, depth = ops.shape(weights)
        height, width = upscaled.shape[1:3]
        features = ops.reshape(upscaled, (images, sets, height * width, depth))
        logits = ops.matmul(weights, ops.swapaxes(features, 2, 3))
        return ops.reshape(logits, (images, sets, count, height, width))

    def may_be_fast(self) -> bool:
        """Whether the fast form may take over where nothing learns, see `fast_decoder_tf.py`."""
        parts = self._flatten_layers()
        return is_on_cpu() and all(is_plain(part, _PLAIN_PARTS) for part in parts)


_PLAIN_PARTS = frozenset(
    {
        DecoderAttention,
        Embedding,
        LayeredPerceptron,
        MaskDecoder,
        Norm,
        Perceptron,
        TwoWayBlock,
        TwoWayTransformer,
        Upscaling,
        layers.Activation,
        layers.Dense,
        layers.Dropout,
    }
)
"""Classes of the decoder's parts whose weights the fast form knows how to use."""
