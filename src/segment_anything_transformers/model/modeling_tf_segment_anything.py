"""Segment Anything in Keras 3: the model, how it is loaded, and how it learns.

Its parts are files of their own beside those of the PyTorch model, whose names they share but for
the ending `_tf`. Everything is channels last: images (N, H, W, C), image embeddings
(N, H'', W'', D), a grid of tokens (N, H'', W'', C). Attributes carry the names of the original
checkpoints, from which the names of the weights follow. The numbers of images, of prompt sets and
of prompts may be unknown when a graph is traced; the size of the images has to be known.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from keras import layers, ops
from safetensors.numpy import save_file
from transformers.utils import PushToHubMixin

from .checkpoints import SAFETENSORS_INDEX, load_checkpoint
from .configuration_segment_anything import MASK_UPSCALING, SegmentAnythingModelConfig
from .export_tf_segment_anything import export_model
from .fast_decoder_tf import FastDecoder, SharedImage
from .image_encoder_tf import ImageEncoder
from .layers_tf import IS_LOADING, policy_of_layers
from .loss_tf_segment_anything import (
    check_values,
    interactive_loss,
    loss_of_all_masks,
    mask_iou,
    read_labels,
    resize_labels,
)
from .mask_decoder_tf import MaskDecoder
from .prompt_encoder_tf import PromptEncoder
from .tiny_vit_encoder_tf import TinyViTEncoder

IMAGE_ENCODERS: dict[str, type[ImageEncoder] | type[TinyViTEncoder]] = {
    "vit": ImageEncoder,
    "tiny_vit": TinyViTEncoder,
}
"""Image encoders by the `encoder_type` of the configuration."""

_DENSE_AXES = (1, 0)
_CONVOLUTION_AXES = (2, 3, 1, 0)
_DEPTHWISE_AXES = (2, 3, 0, 1)
_PACKED = frozenset({"int8", "int4", "gptq", "awq"})
"""How Keras quantises a layer such that its weights are whole numbers."""


def _named_weights(
    layer: Any, prefix: str = ""
) -> Iterator[tuple[str, Any, tuple[int, ...] | None]]:
    """Name, variable, and the order of PyTorch's axes in it, of every weight below a layer.

    The names are those of the attributes that lead there, as in the PyTorch class.
    """
    if getattr(layer, "quantization_mode", None) in _PACKED:
        raise ValueError(
            f"{prefix[:-1]} is quantised ({layer.quantization_mode}), and PyTorch's class has no "
            'such weights. Save the model as Keras does, `model.save("sam.keras")`, or its weights '
            "before they are quantised."
        )
    if isinstance(layer, (layers.Dense, layers.Conv2D, layers.Conv2DTranspose)):
        is_dense = isinstance(layer, layers.Dense)
        yield f"{prefix}weight", layer.kernel, _DENSE_AXES if is_dense else _CONVOLUTION_AXES
        if layer.use_bias:
            yield f"{prefix}bias", layer.bias, None
    elif isinstance(layer, layers.DepthwiseConv2D):
        yield f"{prefix}weight", layer.kernel, _DEPTHWISE_AXES
        yield f"{prefix}bias", layer.bias, None
    elif isinstance(layer, layers.LayerNormalization):
        yield f"{prefix}weight", layer.gamma, None
        yield f"{prefix}bias", layer.beta, None
    else:
        public = {n: value for n, value in vars(layer).items() if not n.startswith("_")}
        for name, value in public.items():  # a layer's own come first, as PyTorch lists them
            if isinstance(value, keras.Variable):
                yield prefix + name, value, None
        for name, value in public.items():
            if isinstance(value, layers.Layer):
                yield from _named_weights(value, f"{prefix}{name}.")
            elif isinstance(value, list):
                steps = {i: step for i, step in enumerate(value) if isinstance(step, layers.Layer)}
                for index, step in steps.items():
                    yield from _named_weights(step, f"{prefix}{name}.{index}.")


class TFSegmentAnythingPreTrainedModel(keras.Model, PushToHubMixin):
    """What a model does with weights: reads them, writes them, names them as PyTorch does."""

    config_class = SegmentAnythingModelConfig

    def __init__(self, config: SegmentAnythingModelConfig, **kwargs: Any) -> None:
        """Keeps the configuration.

        Args:
            config: The configuration.
            kwargs: What `keras.Model` takes.
        """
        super().__init__(autocast=False, **kwargs)
        self.config = config

    def state_dict(self) -> dict[str, np.ndarray]:
        """Weights as numpy arrays, with the names and the axes of the PyTorch class."""
        state = {}
        for name, variable, axes in _named_weights(self):
            array = np.asarray(ops.convert_to_tensor(variable))
            array = array if axes is None else array.transpose(np.argsort(axes))
            state[name] = np.ascontiguousarray(array)
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Takes weights with the names and the axes of the PyTorch class.

        Raises:
            ValueError: Weights are missing, too many, or of another shape, each named.
        """
        named = {name: (variable, axes) for name, variable, axes in _named_weights(self)}
        missing, unexpected = sorted(named.keys() - state), sorted(state.keys() - named)
        wrong = []
        for name in named.keys() & state.keys():
            variable, axes = named[name]
            array = state[name] if axes is None else state[name].transpose(axes)
            if tuple(array.shape) != tuple(variable.shape):
                wrong.append(f"{name} is {state[name].shape}")
                continue
            variable.assign(array)
        if missing or unexpected or wrong:
            raise ValueError(
                f"The weights do not fit the configuration. Missing: {missing}. "
                f"Unexpected: {unexpected}. Of another shape: {wrong}."
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        config: SegmentAnythingModelConfig | str | os.PathLike[str] | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Model with the weights of a preset, a folder, a Hub repository or a Meta checkpoint.

        Reads what `SegmentAnythingModel.from_pretrained` reads; a `.pth` file needs PyTorch.

        Args:
            pretrained_model_name_or_path: The preset's name, folder, repository or file.
            config: The configuration to use instead of the checkpoint's.
            dtype: A dtype policy of Keras, such as "mixed_bfloat16"; by default the global one.
            kwargs: Fields of the configuration to replace, and options of the Hub.

        Raises:
            OSError: No such preset, file, folder or repository, or a file that cannot be read.
            TypeError: An option is unknown.
            ValueError: The weights do not fit the model, each named.
        """
        config, weights, unknown = load_checkpoint(
            pretrained_model_name_or_path, cls.config_class, config, kwargs, framework="np"
        )
        if unknown:
            raise TypeError(f"Unknown options {sorted(unknown)}.")
        is_loading = IS_LOADING.set(True)
        try:
            model = cls(config) if dtype is None else cls(config, dtype=dtype)
        finally:
            IS_LOADING.reset(is_loading)
        model.load_state_dict(weights)
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        max_shard_size: int | str = "50GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes configuration and weights; the file is the one that the PyTorch class writes.

        Args:
            save_directory: Folder, made if needed.
            max_shard_size: Weights beyond it go to several files.
            push_to_hub: Whether to upload the folder.
            kwargs: Options of `push_to_hub`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = ["SegmentAnythingModel"]
        self.config.save_pretrained(folder)
        state = self.state_dict()
        split = split_state_dict_into_shards_factory(
            state,
            get_storage_size=lambda array: array.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
        for name, keys in split.filename_to_tensors.items():
            unfinished = folder / f"{name}.tmp"
            save_file({key: state[key] for key in keys}, unfinished, metadata={"format": "pt"})
            unfinished.rename(folder / name)
        if split.is_sharded:
            # Of what PyTorch calls parameters: the frequencies do not learn.
            count = sum(array.size for name, array in state.items() if "pe_layer" not in name)
            metadata = {"total_parameters": count, **split.metadata}
            index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True)
            (folder / SAFETENSORS_INDEX).write_text(f"{text}\n")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)


@keras.saving.register_keras_serializable("segment_anything_transformers")
class TFSegmentAnythingModel(TFSegmentAnythingPreTrainedModel):
    """Segment Anything: masks for points, boxes and masks in an image.

    Keras' own ways to save and load it, `model.save("sam.keras")` and so on, work, too.

    Attributes:
        clicks: Corrections that a step of `fit` simulates. With 0 it learns from the prompts of the
            inputs alone; otherwise from prompts that it draws itself, see `interactive_loss`.
        output_names: What Keras calls the results of `call`, in their order.
    """

    def __init__(self, config: SegmentAnythingModelConfig, **kwargs: Any) -> None:
        """Builds the model that the configuration describes, with random weights.

        Args:
            config: The configuration.
            kwargs: What `keras.Model` takes: `name`, `trainable`, and `dtype`, a dtype policy such
                as "mixed_bfloat16".
        """
        super().__init__(config, **kwargs)
        self.clicks = 0
        self.output_names = _OUTPUT_NAMES
        self.iou_tracker = keras.metrics.Mean("iou")
        self._is_fitting = self._gives_logits = False
        with policy_of_layers(self.dtype_policy):
            self.image_encoder = IMAGE_ENCODERS[config.encoder_type](config)
            self.prompt_encoder = PromptEncoder(config)
            self.mask_decoder = MaskDecoder(config)
            self.build()

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for part in (self.image_encoder, self.prompt_encoder, self.mask_decoder):
            part.build()
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """All that makes the model anew but its weights, in JSON's types, see `from_config`."""
        quantised = {
            str(index): keras.saving.serialize_keras_object(layer.quantization_config)
            for index, layer in enumerate(self._flatten_layers())
            if getattr(layer, "quantization_mode", None) is not None
        }
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "clicks": self.clicks,
            "quantised": quantised,
            "config": json.loads(self.config.to_json_string(use_diff=False)),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """The model that `get_config` described, with random weights.

        Args:
            config: What `get_config` returned.
            custom_objects: Of Keras, not needed.
        """
        fields = {**config}
        clicks, quantised = fields.pop("clicks"), fields.pop("quantised")
        made = cls.config_class.from_dict(fields.pop("config"))
        fields["dtype"] = keras.dtype_policies.get(fields["dtype"])
        model = cls(made, **fields)
        model.clicks = clicks
        layers_in_order = [*model._flatten_layers()]
        for index, way in quantised.items():
            layers_in_order[int(index)].quantize(
                config=keras.saving.deserialize_keras_object(way, custom_objects)
            )
        return model

    @property
    def dummy_inputs(self) -> dict[str, Any]:
        """One black image with one foreground point, of the shapes that `call` takes."""
        height, width = self.config.input_size
        return {
            "images": ops.zeros((1, height, width, self.config.in_channels)),
            "points": ops.convert_to_tensor([[[width / 2, height / 2]]]),
            "labels": ops.ones((1, 1), "int32"),
        }

    @property
    def mask_threshold(self) -> float:
        """Logits above it belong to the mask."""
        return self.config.mask_threshold

    def grid_size(self, input_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Spatial size (H'', W'') of the image embeddings.

        Args:
            input_size: Size (H, W) of the model input, by default the configuration's.
        """
        return self.config.grid_size(input_size)

    def mask_size(self, input_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Spatial size (H', W') of mask prompts and of low-resolution logits.

        Args:
            input_size: Size (H, W) of the model input, by default the configuration's.
        """
        return self.config.mask_size(input_size)

    def get_image_embeddings(self, images: Any, training: bool = False) -> Any:
        """Embeddings (N, H'', W'', D) of images, to be used again for any number of prompts.

        Args:
            images: (N, H, W, C), resized, normalised and padded.
            training: Whether the drop rates act.

        Raises:
            ValueError: The channels or the size are not the configuration's.
        """
        images = ops.convert_to_tensor(images)
        self._check_images(tuple(images.shape))
        return self.image_encoder(ops.cast(images, self.compute_dtype), training=training)

    def get_prompt_embeddings(
        self, inputs: dict[str, Any], input_size: tuple[int, int] | None = None
    ) -> tuple[Any, Any]:
        """Embeddings of prompts: tokens (N, P, M, D) and a grid (N, P, H'', W'', D).

        Without a mask the grid is (1, 1, 1, 1, D), to be broadcast; without points and boxes
        there are no tokens. What a prompt set does not have but others do has a token, too.

        Args:
            inputs: The prompts, as `call` takes them.
            input_size: Size (H, W) that the coordinates refer to, by default the configuration's.
        """
        prompts, _ = _read_prompts(inputs)
        tokens, dense, exists = self.prompt_encoder(
            *prompts, input_hw=input_size or self.config.input_size
        )
        if exists is not None:
            tokens = ops.take(tokens, ops.nonzero(ops.any(exists, axis=(0, 1)))[0], axis=2)
        return tokens, dense

    def call(
        self,
        inputs: dict[str, Any],
        training: bool = False,
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> tuple[Any, ...]:
        """Masks of every image, at the size of the model input.

        Args:
            inputs: A dictionary with `images` (N, H, W, C) and, each of them optional or of
                length 0, `points` (N, M1, 2), `labels` (N, M1), `boxes` (N, M2, 4) and `masks`
                (N, M3, H', W'). Or what the processor returns: `pixel_values` (N, C, H, W),
                `input_points` (N, P, M1, 2) and so on; results have an axis P then. Instead of
                images `image_embeddings` (N, H'', W'', D).
            training: Whether the drop rates act.
            multimask_output: True for K = `nb_multimask_outputs` nested masks, False for one.
            return_logits: True for logits instead of boolean masks.

        Returns:
            Masks (N, K, H, W), bool or logits; scores (N, K); logits (N, K, H', W').

        Raises:
            ValueError: A name is unknown or a shape does not fit.
        """
        prompts, has_sets = _read_prompts(inputs)
        embeddings = self._embeddings(inputs, training)
        selection = slice(1, None) if multimask_output else slice(0, 1)
        selection = slice(None) if self._is_fitting else selection
        is_fast = not (training or self._is_fitting) and self.mask_decoder.may_be_fast()
        decode = self.decode_fast if is_fast else self.decode
        logits, scores = decode(embeddings, *prompts, selection)
        masks = self._at_input_size(logits)
        if not (return_logits or self._gives_logits):
            masks = masks > self.mask_threshold
        results: tuple[Any, ...] = (masks, scores, logits)
        results = results if has_sets else tuple(result[:, 0] for result in results)
        return (*results, embeddings) if self._is_fitting else results

    def decode(
        self,
        image_embeddings: Any,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
        selection: slice = slice(None),
    ) -> tuple[Any, Any]:
        """Logits (N, P, K, H', W') and qualities (N, P, K) of the selected masks.

        Args:
            image_embeddings: (N, H'', W'', D).
            points: (N, P, M1, 2) or None.
            labels: (N, P, M1), with points.
            boxes: (N, P, M2, 4) or None.
            masks: (N, P or 1, M3, H', W') or None.
            selection: Which masks: 0 is the single one, the others the multiple ones.
        """
        grid_hw = tuple(image_embeddings.shape[1:3])
        tokens, dense, exists = self.prompt_encoder(
            points, labels, boxes, masks, input_hw=self._input_hw(grid_hw)
        )
        return self.mask_decoder(
            ops.cast(image_embeddings, self.compute_dtype),
            self.prompt_encoder.pe_layer.of_grid(*grid_hw),
            tokens,
            dense,
            exists,
            selection=selection,
        )

    def decode_fast(
        self,
        image_embeddings: Any,
        points: Any,
        labels: Any,
        boxes: Any,
        masks: Any,
        selection: slice,
    ) -> tuple[Any, Any]:
        """As `decode`, by the form of the decoder that is fast on a processor.

        Args:
            image_embeddings: (N, H'', W'', D).
            points: As in `decode`, and so the other prompts.
            labels: (N, P, M1), with points.
            boxes: (N, P, M2, 4) or None.
            masks: (N, P or 1, M3, H', W') or None.
            selection: As in `decode`.
        """
        shared = self.share(image_embeddings, masks)
        return self.decode_shared(
            shared, points, labels, boxes, tuple(image_embeddings.shape[1:3]), selection
        )

    def share(self, image_embeddings: Any, masks: Any = None) -> SharedImage:
        """The part of fast decoding that is the same for all prompts of an image but for masks.

        Args:
            image_embeddings: (N, H'', W'', D).
            masks: (N, P or 1, M3, H', W') or None.
        """
        positions = self.prompt_encoder.pe_layer.of_grid(*image_embeddings.shape[1:3])
        return FastDecoder(self.mask_decoder).share(
            ops.cast(image_embeddings, self.compute_dtype),
            positions,
            self.prompt_encoder.dense(masks),
        )

    def decode_shared(
        self,
        shared: SharedImage,
        points: Any,
        labels: Any,
        boxes: Any,
        grid_hw: tuple[int, int],
        selection: slice,
    ) -> tuple[Any, Any]:
        """As `decode_fast`, for what `share` returned.

        Args:
            shared: The image, and the masks if there are any.
            points: As in `decode`, and so labels and boxes.
            labels: (N, P, M1), with points.
            boxes: (N, P, M2, 4) or None.
            grid_hw: Size (H'', W'') of the image embeddings.
            selection: As in `decode`.
        """
        tokens, exists = self.prompt_encoder.tokens(points, labels, boxes, self._input_hw(grid_hw))
        fast = FastDecoder(self.mask_decoder)
        decoded = fast.decode(shared, tokens, exists)
        chosen = range(self.mask_decoder.masks_per_set)[selection]
        return fast.masks(decoded, shared, grid_hw, chosen), decoded.iou_scores[..., selection]

    def decode_above(
        self,
        shared: SharedImage,
        points: Any,
        labels: Any,
        grid_hw: tuple[int, int],
        iou_threshold: Any,
    ) -> tuple[Any, Any, Any]:
        """The multiple masks of those prompt sets of which any mask's quality suffices.

        The quality is known before a mask is made, and the others never are.

        Args:
            shared: What `share` returned for one image.
            points: (1, P, M1, 2).
            labels: (1, P, M1).
            grid_hw: Size (H'', W'') of the image embeddings.
            iou_threshold: One quality has to be above it.

        Returns:
            Logits (1, n, K, H', W'), qualities (P, K) of all prompt sets, and which of them have
            masks (n,).
        """
        tokens, exists = self.prompt_encoder.tokens(points, labels, None, self._input_hw(grid_hw))
        fast = FastDecoder(self.mask_decoder)
        decoded = fast.decode(shared, tokens, exists)
        scores = ops.cast(decoded.iou_scores[0, :, 1:], "float32")
        (chosen,) = ops.nonzero(ops.any(~(scores <= iou_threshold), axis=-1))
        multiple = range(1, self.config.nb_multimask_outputs + 1)
        logits = fast.masks(decoded.take(chosen), shared, grid_hw, multiple)
        return logits, scores, chosen

    def _input_hw(self, grid_hw: tuple[int, int]) -> tuple[int, int]:
        patch = self.config.encoder_patch_size
        return grid_hw[0] * patch, grid_hw[1] * patch

    def _embeddings(self, inputs: dict[str, Any], training: bool) -> Any:
        given = [name for name in _IMAGE_NAMES if inputs.get(name) is not None]
        if len(given) != 1:
            raise ValueError(f"Give exactly one of {', '.join(_IMAGE_NAMES)}, got {given}.")
        values = ops.convert_to_tensor(inputs[given[0]])
        if given[0] == "image_embeddings":
            return values
        if given[0] == "pixel_values":
            values = ops.transpose(values, (0, 2, 3, 1))
        return self.get_image_embeddings(values, training)

    def _at_input_size(self, logits: Any) -> Any:
        images, sets, count = ops.shape(logits)[:3]
        height, width = logits.shape[3:]
        patch = self.config.encoder_patch_size
        size = (height * patch // MASK_UPSCALING, width * patch // MASK_UPSCALING)
        flat = ops.reshape(logits, (images * sets * count, height, width, 1))
        flat = ops.image.resize(flat, size, "bilinear", data_format="channels_last")
        return ops.reshape(flat, (images, sets, count, *size))

    def _check_images(self, shape: tuple[int | None, ...]) -> None:
        config = self.config
        if len(shape) != 4 or shape[3] != config.in_channels:
            raise ValueError(
                f"images must have the shape (N, H, W, {config.in_channels}), got {shape}."
            )
        height, width = shape[1:3]
        if config.fixed_input_size and (height, width) != config.input_size:
            raise ValueError(
                f"This model takes images of {config.input_size} pixels, got {(height, width)}. "
                "Use the image processor, or load the model with fixed_input_size=False."
            )
        if height is None or width is None:
            raise ValueError("The height and width of the images must be known.")
        if height % config.encoder_patch_size or width % config.encoder_patch_size:
            raise ValueError(
                f"Height and width must be multiples of the patch size "
                f"{config.encoder_patch_size}, got {(height, width)}."
            )

    # ------------------------------------------------------------------------------- training

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The paper's loss, unless `compile` was given others.

        `fit` and `evaluate` decode all masks: the single one learns, and the best of the multiple
        ones. They report the mean IoU of the one that the model rates highest as `iou`. With
        `clicks`, `fit` learns from a simulated interaction instead.

        Losses of one's own are three, one for each result of `call`: logits of the masks at the
        size of the model input, scores, and low-resolution logits. A list `compile(loss=[None,
        None, "binary_crossentropy"])` takes three truths in that order, a dictionary with the keys
        of `output_names` takes a dictionary.

        Args:
            x: The inputs, as `call` takes them.
            y: True masks (N, h, w), or for inputs with an axis P (N, P, h, w), of any resolution:
                boolean, from 0 to 1, or 0 and 255. With that axis also (N, h, w) instance ids, as
                `read_labels` takes them. Negative where the truth is not known.
            y_pred: What `call` returned.
            sample_weight: Only with a loss of `compile`.
            training: Whether it is a step of training.

        Raises:
            ValueError: There is no truth, its values make no sense, or there are sample weights
                for a loss that takes none. Compiled, values are checked where `fit` and its kin
                get an array `y`, not in a data set.
        """
        if self._compile_loss is not None:
            _check_own_truth(y)
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if y is None or sample_weight is not None:
            raise ValueError(
                "Training takes pairs (inputs, true masks), without sample weights; mark what "
                "should not count with negative values in the masks."
            )
        _, scores, logits, embeddings = y_pred
        labels = ops.convert_to_tensor(y)
        if len(logits.shape) == 4:
            labels, scores, logits = labels[:, None], scores[:, None], logits[:, None]
        masks, is_known = read_labels(labels, logits.shape[1])
        labels = ops.where(is_known, masks, -1.0)
        truth, known = resize_labels(labels, logits)
        iou = mask_iou(logits > self.mask_threshold, truth > 0.5, known)
        rated_best = ops.argmax(scores, axis=-1)[..., None]
        self.iou_tracker.update_state(ops.take_along_axis(iou, rated_best, axis=-1))
        if training and self.clicks:
            decode = partial(self.decode, embeddings)
            input_hw = self._input_hw(tuple(embeddings.shape[1:3]))
            loss = interactive_loss(decode, labels, input_hw, self.mask_threshold, self.clicks)
        else:
            loss = loss_of_all_masks(logits, scores, labels, self.mask_threshold)
        return _share_of_replicas(loss + sum(self.losses))

    def train_step(self, *args: Any) -> Any:
        """One step of `fit`, on all masks."""
        with self._fitting(), warnings.catch_warnings():
            # The weights for kinds of prompts that the batch lacks.
            warnings.filterwarnings("ignore", "Gradients do not exist for variables")
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        """One step of `evaluate`, on all masks."""
        with self._fitting():
            return super().test_step(*args)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, once the true masks have been checked as `compute_loss` says."""
        self._check_values(x, y)
        self._make_variables()
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, once the true masks have been checked as `compute_loss` says."""
        self._check_values(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, once the true masks have been checked as `compute_loss` says."""
        self._check_values(x, y)
        self._make_variables()
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, once the true masks have been checked as `compute_loss` says."""
        self._check_values(x, y)
        return super().test_on_batch(x, y, *args, **kwargs)

    def _check_values(self, x: Any, y: Any) -> None:
        """Refuses true masks in an array that a compiled step would take: it sees no values."""
        if y is None or self._compile_loss is not None:
            return
        first = {name: values[:1] for name, values in x.items() if values is not None}
        prompts, has_sets = _read_prompts(first)
        prompt_sets = next((prompt.shape[1] for prompt in prompts if prompt is not None), 1)
        for labels in y:  # one by one, which takes little memory
            labels = ops.convert_to_numpy(labels)[None]
            check_values(labels if has_sets else labels[:, None], prompt_sets)

    def _make_variables(self) -> None:
        """Makes the variables of a step of training before it: else it is traced once more."""
        if keras.backend.backend() != "tensorflow" or self.optimizer is None:
            return
        with self.distribute_strategy.scope():
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
            if self.clicks:
                keras.random.uniform(())  # the generator's state

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Makes `call` return what a loss needs, where no caller can ask for it.

        For the paper's loss that is all masks, the single one first; for those of `compile` logits
        instead of boolean masks, which have no gradients.
        """
        self._is_fitting = self._compile_loss is None
        self._gives_logits = not self._is_fitting
        try:
            yield
        finally:
            self._is_fitting = self._gives_logits = False

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_size: tuple[int, int] | None = None,
        **converter_options: Any,
    ) -> None:
        """Writes what runs without this package: a SavedModel, or two TFLite files.

        The part `encode_images` takes `images` (N, H, W, C), resized, normalised and padded, and
        returns `image_embeddings` (N, H'', W'', D). `decode_masks` takes these and `points`
        (N, P, M1, 2), `labels` (N, P, M1), `boxes` (N, P, M2, 4) and `masks` (N, P, M3, H', W'),
        and returns `mask_logits` (N, P, 1 + K, H', W') and `iou_scores` (N, P, 1 + K), the single
        mask first. All numbers but the sizes may differ from call to call. A prompt that is not
        given is padding: points with the label -10, boxes of four times -10, masks of NaN.

        Args:
            filepath: The folder, which must not exist yet. For TFLite it will hold
                `image_encoder.tflite` and `mask_decoder.tflite`.
            format: "tf_saved_model", or "litert" for TFLite.
            verbose: Whether to print what the SavedModel takes and returns.
            input_size: Size (H, W) of the images, by default the configuration's.
            converter_options: Attributes of TensorFlow's TFLiteConverter, such as `optimizations`.

        Raises:
            FileExistsError: The folder exists.
            TypeError: Options of the converter, but no TFLite is asked for.
            ValueError: The format is unknown, or Keras does not run on TensorFlow.
        """
        export_model(self, Path(filepath), format, input_size, bool(verbose), **converter_options)


def _share_of_replicas(loss: Any) -> Any:
    """A loss as its part of the mean over all replicas of `tf.distribute`: Keras adds them up."""
    if keras.backend.backend() != "tensorflow":
        return loss
    from tensorflow import distribute

    return loss / distribute.get_strategy().num_replicas_in_sync


def _check_own_truth(y: Any) -> None:
    """Refuses another truth for losses of one's own than one for each result of `call`."""
    if not isinstance(y, (list, tuple, dict)) or len(y) != len(_OUTPUT_NAMES):
        got = f"{len(y)} of them" if isinstance(y, (list, tuple, dict)) else type(y).__name__
        raise ValueError(
            "Losses given to `compile` are a list of three, or a dictionary with the keys "
            f"{_OUTPUT_NAMES}, None for no loss; and so are the true values for each result of the "
            f"model, got {got}. Without a loss, `compile(optimizer)`, true masks are enough: the "
            "model has the paper's loss."
        )


_OUTPUT_NAMES = ["masks", "scores", "logits"]
_IMAGE_NAMES = ("images", "pixel_values", "image_embeddings")
_PROMPT_NAMES = ("points", "labels", "boxes", "masks")
_OTHER_NAMES = ("original_sizes", "reshaped_input_sizes")


def _read_prompts(inputs: dict[str, Any]) -> tuple[tuple[Any, Any, Any, Any], bool]:
    """Points, labels, boxes and masks with an axis P, and whether they came with one.

    Raises:
        ValueError: A name is unknown, or names of both kinds are mixed.
    """
    with_sets = [f"input_{name}" for name in _PROMPT_NAMES]
    unknown = sorted(set(inputs) - {*_IMAGE_NAMES, *_PROMPT_NAMES, *with_sets, *_OTHER_NAMES})
    if unknown:
        raise ValueError(
            f"Unknown inputs {unknown}. Expected {', '.join(_IMAGE_NAMES)}, and "
            f"{', '.join(_PROMPT_NAMES)} or {', '.join(with_sets)}."
        )
    has_sets = "pixel_values" in inputs or any(name in inputs for name in with_sets)
    if has_sets and any(name in inputs for name in _PROMPT_NAMES):
        raise ValueError(f"Give prompts either as {_PROMPT_NAMES} or as {with_sets}, not both.")
    prompts = []
    for plain, name in zip(_PROMPT_NAMES, with_sets, strict=True):
        values = inputs.get(name if has_sets else plain)
        values = None if values is None else ops.convert_to_tensor(values)
        prompts.append(values if values is None or has_sets else values[:, None])
    return _arrange_prompts(*prompts), has_sets


def _arrange_prompts(points: Any, labels: Any, boxes: Any, masks: Any) -> tuple[Any, Any, Any, Any]:
    """Prompts with every axis of the contract; one that is known to be empty becomes None."""
    if points is None and labels is not None:
        raise ValueError("labels need points: each label belongs to a point.")
    if points is not None and labels is None:
        labels = ops.ones(ops.shape(points)[:-1], "int32")
    if boxes is not None and len(boxes.shape) == 3:
        boxes = boxes[:, :, None]
    if masks is not None and len(masks.shape) == 4:
        masks = masks[:, :, None]
    points, boxes, masks = (
        None if prompt is None or 0 in prompt.shape[1:3] else prompt
        for prompt in (points, boxes, masks)
    )
    return points, None if points is None else labels, boxes, masks
