"""Other implementations of a model, each behind the same two functions."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.model.configuration_segment_anything import (
    PADDING,
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.model.weight_arrays import unfold_batch_norms

Prompts = Mapping[str, Tensor]
"""`input_points` (1, P, M1, 2) with `input_labels` (1, P, M1), `input_boxes` (1, P, 4), or both."""


@dataclass(frozen=True)
class Peer:
    """An implementation with a model's weights.

    Attributes:
        name: Its name and version.
        encode: Embeddings (1, D, H'', W'') of an image (1, C, H, W).
        decode: Logits (1, P, K, H', W') and scores (1, P, K), of embeddings and prompts.
    """

    name: str
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor, Prompts], tuple[Any, Any]]


def own_peer(folder: Path) -> Peer:
    """This package's model, loaded from a folder."""
    model = SegmentAnythingModel.from_pretrained(folder)
    return _peer_in_pytorch("segment-anything-transformers", model)


def transformers_peer(source: str | Path) -> Peer:
    """Transformers' SamModel, loaded from a folder or a repository."""
    import transformers

    model = transformers.SamModel.from_pretrained(source).float().eval()
    return _peer_in_pytorch(f"transformers {transformers.__version__}, SamModel", model)


def _peer_in_pytorch(name: str, model: Any) -> Peer:
    def decode(embeddings: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        output = model(image_embeddings=embeddings, **prompts)
        return output.pred_masks, output.iou_scores

    return Peer(name, model.get_image_embeddings, decode)


def meta_peer(model: SegmentAnythingModel, path: Path | None = None) -> Peer | None:
    """Meta's Sam with a model's weights, or those of a file; None where it cannot be imported.

    For a TinyViT it is MobileSAM's.
    """
    package = "mobile_sam" if model.config.encoder_type == "tiny_vit" else "segment_anything"
    try:
        modeling = importlib.import_module(f"{package}.modeling")
    except ImportError:  # or torchvision, which its package wants
        return None
    sam = build_meta_sam(modeling, model)
    if path is not None:
        sam.load_state_dict(torch.load(path, weights_only=True))
        sam.train().eval()

    def decode(embeddings: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        given = {name: tensor[0] for name, tensor in prompts.items()}  # it knows one image only
        points = (given["input_points"], given["input_labels"]) if "input_points" in given else None
        tokens, dense = sam.prompt_encoder(points, given.get("input_boxes"), None)
        positions = sam.prompt_encoder.get_dense_pe()
        logits, scores = sam.mask_decoder(embeddings, positions, tokens, dense, True)
        return logits[None], scores[None]

    name = f"{package} {_version_of(package)}"
    return Peer(name, sam.image_encoder, decode)


def _version_of(package: str) -> str:
    """Version of what has the package, "" if it was not installed as a distribution."""
    names = packages_distributions().get(package, [])
    return version(names[0]) if names else ""


def build_meta_sam(modeling: ModuleType, model: SegmentAnythingModel) -> Any:
    """Meta's or MobileSAM's Sam of the configuration and with the weights of a model.

    Args:
        modeling: Its module `segment_anything.modeling`, or `mobile_sam.modeling`.
        model: The model.
    """
    config, is_tiny = model.config, model.config.encoder_type == "tiny_vit"
    sam = modeling.Sam(
        _tiny_vit(modeling, config)
        if is_tiny
        else modeling.ImageEncoderViT(
            img_size=config.input_size[0],
            patch_size=config.encoder_patch_size,
            in_chans=config.in_channels,
            embed_dim=config.encoder_embed_dim,
            depth=config.encoder_nb_blocks,
            num_heads=config.encoder_nb_heads,
            mlp_ratio=config.encoder_mlp_ratio,
            out_chans=config.embed_dim,
            qkv_bias=config.encoder_qkv_bias,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config.encoder_window_size,
            global_attn_indexes=config.encoder_global_attn_indices,
        ),
        modeling.PromptEncoder(
            config.embed_dim, config.grid_size(), config.input_size, config.prompt_mask_hidden_dim
        ),
        modeling.MaskDecoder(
            transformer_dim=config.embed_dim,
            transformer=modeling.TwoWayTransformer(
                config.decoder_nb_blocks,
                config.embed_dim,
                config.decoder_nb_heads,
                config.decoder_mlp_channels,
            ),
            num_multimask_outputs=config.nb_multimask_outputs,
            iou_head_depth=config.decoder_iou_head_depth,
            iou_head_hidden_dim=config.decoder_iou_hidden_dim,
        ),
    )
    weights = model.state_dict()
    sam.load_state_dict(unfold_batch_norms(weights) if is_tiny else weights)
    return sam.train().eval()  # from one to the other TinyViT looks its attention biases up


def _tiny_vit(modeling: ModuleType, config: SegmentAnythingModelConfig) -> Any:
    """MobileSAM's image encoder; what its first stage has for heads and windows is never used."""
    return modeling.TinyViT(
        img_size=config.input_size[0],
        in_chans=config.in_channels,
        embed_dims=list(config.encoder_stage_widths),
        depths=list(config.encoder_stage_depths),
        num_heads=[1, *config.encoder_stage_heads],
        window_sizes=[1, *config.encoder_stage_windows],
        mlp_ratio=config.encoder_mlp_ratio,
        mbconv_expand_ratio=config.encoder_mlp_ratio,
        drop_path_rate=0.0,
    )


def onnx_peer(folder: Path) -> Peer:
    """ONNX Runtime with the two files that `export_onnx` writes."""
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx")
        for name in ("vision_encoder", "prompt_encoder_mask_decoder")
    }

    def encode(pixels: Tensor) -> Any:
        return sessions["vision_encoder"].run(None, {"pixel_values": pixels.numpy()})[0]

    def decode(embeddings: Tensor, prompts: Prompts) -> tuple[Any, Any]:
        points, labels = [], []
        if "input_points" in prompts:
            points, labels = [prompts["input_points"]], [prompts["input_labels"]]
        if "input_boxes" in prompts:  # its corners are points of their own kinds
            points.append(prompts["input_boxes"].unflatten(-1, (2, 2)))
            labels.append(torch.tensor([2, 3]).expand(*points[-1].shape[:-1]))
        inputs = {
            "image_embeddings": embeddings.numpy(),
            "image_positional_embeddings": embeddings.numpy(),  # not looked at
            "input_points": torch.cat(points, dim=2).numpy(),
            "input_labels": torch.cat(labels, dim=2).numpy(),
        }
        scores, logits = sessions["prompt_encoder_mask_decoder"].run(None, inputs)
        return logits, scores

    return Peer(f"ONNX Runtime {onnxruntime.__version__}", encode, decode)


def saved_model_peer(folder: Path, model: SegmentAnythingModel) -> Peer:
    """TensorFlow with a SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))  # kept: its functions do not keep it
    name = f"TensorFlow {tf.__version__}, SavedModel"

    def run(endpoint: str, **arrays: np.ndarray) -> dict[str, Any]:
        constants = {name: tf.constant(array) for name, array in arrays.items()}
        return loaded.signatures[endpoint](**constants)

    return _keras_peer(name, run, model)


def tflite_peer(folder: Path, model: SegmentAnythingModel) -> Peer:
    """TensorFlow's interpreter with the two TFLite files."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite import Interpreter
    files = {"encode_images": "image_encoder.tflite", "decode_masks": "mask_decoder.tflite"}
    interpreters = {endpoint: Interpreter(str(folder / file)) for endpoint, file in files.items()}

    def run(endpoint: str, **arrays: np.ndarray) -> dict[str, Any]:
        return interpreters[endpoint].get_signature_runner(endpoint)(**arrays)

    return _keras_peer("TFLite", run, model)


def _keras_peer(name: str, run: Callable[..., dict[str, Any]], model: SegmentAnythingModel) -> Peer:
    """An export of the Keras model, which is channels last and takes every kind of prompt."""
    mask_size = model.config.mask_size()

    def encode(pixels: Tensor) -> Any:
        images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        embeddings = np.asarray(run("encode_images", images=images)["image_embeddings"])
        return np.moveaxis(embeddings, -1, 1)

    def decode(embeddings: Tensor, prompts: Prompts) -> tuple[Any, Any]:
        sets = next(iter(prompts.values())).shape[:2]
        absent = {
            "input_points": torch.full((*sets, 1, 2), float(PADDING)),
            "input_labels": torch.full((*sets, 1), PADDING),
            "input_boxes": torch.full((*sets, 4), float(PADDING)),
        }
        points, labels, boxes = {**absent, **prompts}.values()  # in the order of `absent`
        made = run(
            "decode_masks",
            image_embeddings=np.ascontiguousarray(embeddings.permute(0, 2, 3, 1).numpy()),
            points=points.numpy(),
            labels=labels.int().numpy(),
            boxes=boxes[:, :, None].numpy(),
            masks=np.full((*sets, 1, *mask_size), np.nan, np.float32),
        )
        logits, scores = np.asarray(made["mask_logits"]), np.asarray(made["iou_scores"])
        return logits[:, :, 1:], scores[:, :, 1:]  # the single mask comes first

    return Peer(name, encode, decode)
