"""Segment Anything in PyTorch: the model, how it is loaded, and what it checks.

Its parts are files of their own, in the order in which data flows: `image_encoder.py`,
`prompt_encoder.py`, `mask_decoder.py` with `two_way_transformer.py`. Parameters carry the names of
the original checkpoints. Comments give shapes in the specification's letters: N images, P
independent prompt sets of an image, T tokens of a prompt set, (H'', W'') the grid of image
embeddings, L = H'' W'', D the embedding width, K masks.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A.
"""

import math
import os
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_segment_anything import MASK_UPSCALING, SegmentAnythingModelConfig
from .image_encoder import EncoderAttention, EncoderBlock, ImageEncoder, VisionEncoder
from .layers import LayerNorm2d
from .loss_segment_anything import segmentation_loss
from .mask_decoder import MaskDecoder
from .outputs import DecoderExtras, Record, SegmentAnythingOutput
from .prompt_encoder import PositionEncoding, PromptEncoder
from .tiny_vit_encoder import InvertedBottleneck, TinyViTEncoder, WindowAttention, WindowBlock
from .two_way_transformer import TwoWayBlock

_LOADING_OPTIONS = ("dtype", "torch_dtype", "attn_implementation", "quantization_config")

IMAGE_ENCODERS: dict[str, type[ImageEncoder] | type[TinyViTEncoder]] = {
    "vit": ImageEncoder,
    "tiny_vit": TinyViTEncoder,
}
"""Image encoders by the `encoder_type` of the configuration."""

_WHOLE_BLOCKS = (EncoderBlock, InvertedBottleneck, WindowBlock, TwoWayBlock)


class SegmentAnythingPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, shared by all Segment Anything models."""

    config: SegmentAnythingModelConfig
    config_class = SegmentAnythingModelConfig
    base_model_prefix = "segment_anything"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = {block.__name__ for block in _WHOLE_BLOCKS}  # noqa: RUF012, as in the base
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"pe_layer"}  # noqa: RUF012

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Yes: every layer looks its implementation up in the configuration when it runs.

        The base class guesses from the source whether transformers' own attention functions are
        used, which know no bias that is made a few rows at a time.
        """
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, LayerNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PositionEncoding):
            init.normal_(module.positional_encoding_gaussian_matrix, std=module.scale)
        elif isinstance(module, EncoderAttention):
            init.zeros_(module.rel_pos_h)
            init.zeros_(module.rel_pos_w)
        elif isinstance(module, WindowAttention):
            init.zeros_(module.attention_biases)
        elif isinstance(module, ImageEncoder):
            init.zeros_(module.pos_embed)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: SegmentAnythingModelConfig | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Model with the weights of a preset, a folder, a Hub repository or a Meta checkpoint.

        Reads, whatever names and sizes the weights have: a preset ("sam_vit_t" lies inside the
        package), a folder or Hub repository of ours or of transformers' SAM, a file of Meta's or of
        MobileSAM's, or of a training with their code, or a folder with one such file.
        `in_channels` and `input_size` may differ from the checkpoint's: the weights adapt.

        Args:
            pretrained_model_name_or_path: The preset's name, folder, repository or file.
            model_args: Passed on to the class.
            config: The configuration to use instead of the checkpoint's.
            kwargs: Fields of the configuration to replace (such as `input_size`), and everything
                that `PreTrainedModel.from_pretrained` takes (`dtype`, `revision`, `token`, ...).

        Raises:
            OSError: No such preset, file, folder or repository, or a file that cannot be read.
            ValueError: The weights do not fit the model, each named with the shapes; or are missing
                (unless `output_loading_info` reports them), NaN, infinite or integers.
        """
        from .checkpoints import load_checkpoint

        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        # The configuration has fields of some of these names and would take them to itself.
        of_loading = {name: kwargs.pop(name) for name in _LOADING_OPTIONS if name in kwargs}
        config, weights, kwargs = load_checkpoint(
            pretrained_model_name_or_path, cls.config_class, config, kwargs
        )
        kwargs.update(of_loading)
        if not kwargs.get("ignore_mismatched_sizes"):
            is_reported = bool(kwargs.get("output_loading_info"))
            cls._check_weights(config, weights, str(pretrained_model_name_or_path), is_reported)
        model = super().from_pretrained(
            None, *model_args, config=config, state_dict=weights, **kwargs
        )
        loaded = model[0] if isinstance(model, tuple) else model
        loaded.name_or_path = str(pretrained_model_name_or_path)
        return model

    @classmethod
    def _check_weights(
        cls,
        config: SegmentAnythingModelConfig,
        weights: dict[str, Tensor],
        source: str,
        may_miss: bool,
    ) -> None:
        """Refuses weights of other shapes and missing ones; names that are too many only warn."""
        with torch.device("meta"):
            expected = cls(config).state_dict()
        if not may_miss and not expected.keys() & weights.keys():
            raise ValueError(
                f"{source} holds no weight of {cls.__name__}: its names are "
                f"{sorted(weights)[:3]} and so on, expected {sorted(expected)[:3]} and so on."
            )
        wrong = [
            f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ]
        if wrong:
            raise ValueError(
                f"{len(wrong)} weights of {source} do not fit the configuration: "
                f"{'; '.join(wrong)}. Load with the checkpoint's own configuration, or with "
                "ignore_mismatched_sizes=True to start these from random values."
            )
        missing = expected.keys() - weights.keys()
        if may_miss or not missing:
            return
        with torch.device("meta"):  # a derived class may add what no checkpoint has
            needed = SegmentAnythingModel(config).state_dict().keys()
        missing &= needed
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(needed)} weights are missing from {source}: "
                f"{', '.join(sorted(missing)[:3])} and so on. The file is incomplete: download it "
                "again, or load with ignore_mismatched_sizes=True to start these from random "
                "values."
            )


class SegmentAnythingModel(SegmentAnythingPreTrainedModel):
    """Segment Anything: masks for points, boxes and masks in an image."""

    image_encoder: Any  # one of IMAGE_ENCODERS

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the model that the configuration describes, with random weights."""
        super().__init__(config)
        self.image_encoder = IMAGE_ENCODERS[config.encoder_type](config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The layer that turns an image into tokens."""
        return self.image_encoder.patch_embed

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One black image with one foreground point, of the shapes that `forward` takes."""
        height, width = self.config.input_size
        pixels = torch.zeros(1, self.config.in_channels, height, width, dtype=self.dtype)
        point = torch.tensor([[[[width / 2, height / 2]]]])
        inputs = {
            "pixel_values": pixels,
            "input_points": point,
            "input_labels": torch.ones(1, 1, 1, dtype=torch.long),
        }
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @property
    def vision_encoder(self) -> VisionEncoder:
        """The image encoder as transformers' SAM calls it, with attentions and hidden states."""
        return VisionEncoder(self.image_encoder)

    def get_image_wide_positional_embeddings(self) -> Tensor:
        """Position encodings (1, D, H'', W'') of the grid, as transformers' SAM gives them."""
        return self.prompt_encoder.get_dense_pe()

    @property
    def prompts_per_group(self) -> int | None:
        """How many prompt sets are decoded together; None chooses by device and image size.

        On a processor four of `sam_vit_b` are fastest: what is known of them fits the cache. More
        on a GPU. Results do not depend on it. Can be set.
        """
        return self.mask_decoder.prompts_per_group

    @prompts_per_group.setter
    def prompts_per_group(self, count: int | None) -> None:
        if count is not None and count < 1:
            raise ValueError(f"prompts_per_group must be at least 1 or None, got {count}.")
        self.mask_decoder.prompts_per_group = count

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

    def get_image_embeddings(self, pixel_values: Tensor) -> Tensor:
        """Embeddings (N, D, H'', W'') of images, to be used again for any number of prompts.

        Args:
            pixel_values: (N, C, H, W) images, resized, normalised and padded.

        Raises:
            ValueError: The channels or the size are not the configuration's.
        """
        return self._encode(pixel_values, None)

    def _encode(self, pixel_values: Tensor, record: Record | None) -> Tensor:
        self._check_pixels(pixel_values)
        dtype = self._encoder_dtype()
        if record is None:
            return self.image_encoder(pixel_values.to(dtype))
        if not isinstance(self.image_encoder, ImageEncoder):
            raise ValueError(
                f'An image encoder of the type "{self.config.encoder_type}" keeps no hidden states '
                "and attentions. Leave output_hidden_states and output_attentions out."
            )
        return self.image_encoder(pixel_values.to(dtype), record)

    def _encoder_dtype(self) -> torch.dtype:
        """The encoder's precision; its weights need not be parameters, as in DataParallel."""
        neck = self.image_encoder.neck
        weight = getattr(neck[1], "weight", None)
        if weight is None:  # wrapped; none at all where they lie flat in another module
            weight = next(neck.parameters(), None)
        return torch.float32 if weight is None else weight.dtype

    def get_prompt_embeddings(
        self,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        input_size: tuple[int, int] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Embeddings of prompts: tokens (N, P, M, D) and a grid (N, P, D, H'', W'').

        Without a mask the grid is (1, 1, D, 1, 1), to be broadcast; without points and boxes
        there are no tokens. What a prompt set does not have but others do has a token, too. The
        prompts have the shapes that `forward` takes.

        Args:
            input_points: (N, P, M1, 2).
            input_labels: (N, P, M1).
            input_boxes: (N, P, 4) or (N, P, M2, 4).
            input_masks: (N, 1, H', W') or (N, P, M3, H', W').
            input_size: Size (H, W) that the coordinates refer to, by default the configuration's.
        """
        input_hw = input_size or self.config.input_size
        prompts = _arrange_prompts(input_points, input_labels, input_boxes, input_masks)
        tokens, dense, exists = self.prompt_encoder(*prompts, input_hw)
        if tokens is not None and exists is not None:
            tokens = tokens[:, :, exists.any(0).any(0)]
        return tokens, dense

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        multimask_output: bool = True,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        original_sizes: Tensor | None = None,
        reshaped_input_sizes: Tensor | None = None,
    ) -> SegmentAnythingOutput | tuple[Any, ...]:
        """Masks for every prompt set of every image.

        Takes all that the processor returns, `model(**inputs)`, in the order of transformers' SAM.
        Coordinates are pixels of the padded model input, as the processor returns them. Points,
        boxes and masks of one prompt set describe one object together.

        Args:
            pixel_values: (N, C, H, W) images, resized, normalised and padded.
            input_points: (N, P, M1, 2) points, x before y.
            input_labels: (N, P, M1), 1 foreground, 0 background, -1 not a point, -10 padding; by
                default all are foreground.
            input_boxes: (N, P, 4), or (N, P, M2, 4) for M2 boxes that describe one object: left,
                top, right, bottom. A box of four times -10 is padding.
            input_masks: (N, 1, H', W') logits for all prompt sets of an image, or
                (N, P, M3, H', W') whose embeddings are summed over M3. A mask of NaN is padding.
            image_embeddings: (N, D, H'', W'') of `get_image_embeddings`, instead of
                `pixel_values`.
            multimask_output: True for K = `nb_multimask_outputs` nested masks a prompt set, False
                for a single one.
            attention_similarity: Adds to the scores of the prompts' attention to the image, to be
                broadcast to (N P, heads, T, H'' W''), for PerSAM (arXiv:2305.03048).
            target_embedding: Adds to the prompts' tokens (N, P, T, D) before each block of the
                decoder, for PerSAM.
            labels: True masks of the padded input at any resolution, as `read_labels` takes them:
                (N, P, h, w), boolean, from 0 to 1, or 0 and 255; or (N, h, w) instance ids.
                Negative where the truth is not known. Adds the loss.
            return_dict: False for a tuple; by default the configuration decides.
            output_attentions: Whether to return attentions, which takes time and memory whatever
                `attn_implementation` is; by default the configuration decides.
            output_hidden_states: Whether to return the image encoder's hidden states, likewise.
            original_sizes: (N, 2), of no use to the model.
            reshaped_input_sizes: (N, 2), of no use to the model.

        Returns:
            Logits, predicted qualities, image embeddings, the loss if there are labels, and what
            else was asked for.

        Raises:
            ValueError: A shape does not fit; the message says what was expected.
        """
        if (pixel_values is None) == (image_embeddings is None):
            raise ValueError("Give either pixel_values or image_embeddings, not both or neither.")
        record = self._record(output_attentions, output_hidden_states)
        embeddings = image_embeddings
        if pixel_values is not None:
            embeddings = self._encode(pixel_values, record)
        assert embeddings is not None
        extras = None
        if not (record is None and attention_similarity is None and target_embedding is None):
            extras = DecoderExtras(attention_similarity, target_embedding, record)
        inputs = self._decoder_inputs(
            embeddings, input_points, input_labels, input_boxes, input_masks
        )
        selection = slice(1, None) if multimask_output else slice(0, 1)
        logits, scores = self.mask_decoder(*inputs, selection, extras)
        if self.training and _in_several_processes():
            nothing = self._zero_of_all_weights(pixel_values is None)
            logits, scores = logits + nothing, scores + nothing
        loss = None
        if labels is not None:
            loss = segmentation_loss(logits, scores, labels, self.config.mask_threshold)
        output = SegmentAnythingOutput(loss, scores, logits, embeddings)
        if record is not None:
            if pixel_values is not None:
                output.vision_hidden_states, output.vision_attentions = record.of_encoder()
            if record.keeps_attentions:
                output.mask_decoder_attentions = tuple(record.decoder_attentions)
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()

    def _zero_of_all_weights(self, with_encoder: bool) -> Tensor:
        """A zero that has a gradient for every weight, which is zero.

        DistributedDataParallel waits for a gradient of each, but no call uses all: it asks for one
        mask or for several, for prompts of some kinds, or brings its image embeddings.
        """
        parts = [self.prompt_encoder, self.mask_decoder]
        parts += [self.image_encoder] if with_encoder else []
        weights = [
            weight
            for part in parts
            for weight in part.parameters()
            if weight.requires_grad and type(weight) is nn.Parameter  # not one that is sharded
        ]
        zeros = [weight.reshape(-1)[:0].sum() for weight in weights]
        return torch.stack(zeros).sum() if zeros else torch.zeros((), device=self.device)

    def _record(self, attentions: bool | None, hidden_states: bool | None) -> Record | None:
        """What a call is to keep, where neither argument says so as the configuration does."""
        config = self.config
        return Record.asked(
            bool(config.output_attentions if attentions is None else attentions),
            bool(config.output_hidden_states if hidden_states is None else hidden_states),
        )

    def decode(
        self,
        image_embeddings: Tensor,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        selection: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, P, K, H', W') and qualities (N, P, K) of the selected masks.

        Args:
            image_embeddings: (N, D, H'', W'').
            input_points: As in `forward`, and so the other prompts.
            input_labels: (N, P, M1).
            input_boxes: (N, P, 4) or (N, P, M2, 4).
            input_masks: (N, 1, H', W') or (N, P, M3, H', W').
            selection: Which masks: 0 is the single one, the others the multiple ones, all of
                them by default.
        """
        inputs = self._decoder_inputs(
            image_embeddings, input_points, input_labels, input_boxes, input_masks
        )
        return self.mask_decoder(*inputs, selection)

    def decode_above(
        self,
        image_embeddings: Tensor,
        input_points: Tensor,
        input_labels: Tensor | None,
        iou_threshold: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the multiple masks of every prompt set, those whose predicted quality suffices.

        The quality is known before a mask is made, and the others never are.

        Args:
            image_embeddings: (1, D, H'', W'') of one image.
            input_points: (1, P, M1, 2).
            input_labels: (1, P, M1), by default all are foreground.
            iou_threshold: Qualities have to be above it; those that are NaN are kept.

        Returns:
            Logits (n, H', W'), qualities (n,), and the prompt set of each mask (n,).
        """
        inputs = self._decoder_inputs(image_embeddings, input_points, input_labels, None, None)
        logits = [image_embeddings.new_zeros(0, *self.mask_size(), dtype=self.dtype)]
        scores: list[Tensor] = []
        for decoded in self.mask_decoder.decode(*inputs):
            scores.append(decoded.iou_scores[0])
            for part in decoded.split():
                is_good = ~(part.iou_scores[0, :, 1:] <= iou_threshold)
                sets, numbers = (is_good.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
                if not sets:
                    continue
                if len(sets) < len(is_good):
                    part = part.of_sets(sets)
                made = part.masks([1 + number for number in numbers])[0]
                logits.append(made[is_good[sets][:, numbers]])
        iou_scores = torch.cat(scores)[:, 1:]
        prompts, masks = (~(iou_scores <= iou_threshold)).nonzero(as_tuple=True)
        return torch.cat(logits), iou_scores[prompts, masks], prompts

    def _decoder_inputs(
        self,
        image_embeddings: Tensor,
        input_points: Tensor | None,
        input_labels: Tensor | None,
        input_boxes: Tensor | None,
        input_masks: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """Image embeddings, their positions, tokens, dense embeddings, and which tokens exist."""
        grid_h, grid_w = self._check_embeddings(image_embeddings)
        patch = self.config.encoder_patch_size
        prompts = _arrange_prompts(input_points, input_labels, input_boxes, input_masks)
        self._check_prompts(image_embeddings, *prompts)
        tokens, dense, exists = self.prompt_encoder(*prompts, (grid_h * patch, grid_w * patch))
        positions = self.prompt_encoder.pe_layer.of_grid(grid_h, grid_w)
        return image_embeddings.to(dense.dtype), positions, tokens, dense, exists

    def _check_pixels(self, pixel_values: Tensor) -> None:
        config = self.config
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.in_channels:
            raise ValueError(
                f"pixel_values must have the shape (N, {config.in_channels}, H, W), "
                f"got {tuple(pixel_values.shape)}."
            )
        height, width = pixel_values.shape[2:]
        if config.fixed_input_size and (height, width) != config.input_size:
            raise ValueError(
                f"This model takes images of {config.input_size} pixels, got {(height, width)}. "
                "Use the image processor, or load the model with fixed_input_size=False."
            )
        if height % config.encoder_patch_size or width % config.encoder_patch_size:
            raise ValueError(
                f"Height and width must be multiples of the patch size "
                f"{config.encoder_patch_size}, got {(height, width)}."
            )

    def _check_embeddings(self, image_embeddings: Tensor) -> tuple[int, int]:
        config = self.config
        if image_embeddings.ndim != 4 or image_embeddings.shape[1] != config.embed_dim:
            raise ValueError(
                f"image_embeddings must have the shape (N, {config.embed_dim}, H'', W''), "
                f"got {tuple(image_embeddings.shape)}."
            )
        grid_hw = (image_embeddings.shape[2], image_embeddings.shape[3])
        if config.fixed_input_size and grid_hw != config.grid_size():
            raise ValueError(
                f"image_embeddings must cover a grid of {config.grid_size()}, got {grid_hw}."
            )
        return grid_hw

    def _check_prompts(
        self,
        image_embeddings: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> None:
        """Every prompt has the images of the embeddings, and all agree on the prompt sets."""
        prompts = {"input_points": points, "input_boxes": boxes, "input_masks": masks}
        given = {name: prompt for name, prompt in prompts.items() if prompt is not None}
        for name, prompt in given.items():
            if prompt.shape[0] != image_embeddings.shape[0]:
                raise ValueError(
                    f"{name} has prompts of {prompt.shape[0]} images, "
                    f"but there are {image_embeddings.shape[0]} images."
                )
        sets = {name: prompt.shape[1] for name, prompt in given.items()}
        if sets.get("input_masks") == 1:  # one mask serves every prompt set
            del sets["input_masks"]
        first = next(iter(sets.values()), 1)
        if any(count != first for count in sets.values()):
            raise ValueError(f"The prompts disagree on the number of prompt sets P: {sets}.")
        grid_h, grid_w = image_embeddings.shape[2:]
        mask_hw = (MASK_UPSCALING * grid_h, MASK_UPSCALING * grid_w)
        if masks is not None and tuple(masks.shape[3:]) != mask_hw:
            raise ValueError(
                f"input_masks must be logits of size {mask_hw}, got {tuple(masks.shape[3:])}. "
                "SAMPredictor.preprocess_masks brings a mask of the image to this size."
            )


def _in_several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _arrange_prompts(
    points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Prompts with every axis of the contract; an empty prompt becomes None.

    Raises:
        ValueError: A shape is not one of those that `forward` takes.
    """
    points, labels = _arrange_points(points, labels)
    if boxes is not None:
        if boxes.ndim not in (3, 4) or boxes.shape[-1] != 4:
            raise ValueError(
                "input_boxes must have the shape (N, P, 4) or (N, P, M2, 4), "
                f"got {tuple(boxes.shape)}."
            )
        boxes = boxes[:, :, None] if boxes.ndim == 3 else boxes
        boxes = boxes if boxes.shape[1] and boxes.shape[2] else None
    if masks is not None:
        if masks.ndim not in (4, 5) or (masks.ndim == 4 and masks.shape[1] > 1):
            raise ValueError(
                "input_masks must have the shape (N, 1, H', W') or (N, P, M3, H', W'), "
                f"got {tuple(masks.shape)}."
            )
        masks = masks[:, :, None] if masks.ndim == 4 else masks
        masks = masks if masks.shape[1] and masks.shape[2] else None
    return points, labels, boxes, masks


def _arrange_points(
    points: Tensor | None, labels: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if points is None:
        if labels is not None:
            raise ValueError("input_labels need input_points: each label belongs to a point.")
        return None, None
    if points.ndim != 4 or points.shape[-1] != 2:
        raise ValueError(
            f"input_points must have the shape (N, P, M1, 2), got {tuple(points.shape)}."
        )
    if labels is None:
        labels = torch.ones(points.shape[:-1], dtype=torch.long, device=points.device)
    if labels.shape != points.shape[:-1]:
        raise ValueError(
            f"input_labels must have the shape {tuple(points.shape[:-1])}, one label a point, "
            f"got {tuple(labels.shape)}."
        )
    return (points, labels) if points.shape[1] and points.shape[2] else (None, None)
