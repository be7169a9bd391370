"""Compares a model with another implementation of it, on the same images and prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from conversion import peers
from conversion.peers import Peer
from conversion.report import Comparison
from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.model.checkpoint_files import read_weights
from segment_anything_transformers.model.configuration_segment_anything import (
    PRESET_FILES,
    PRESETS,
    preset_repository,
)
from segment_anything_transformers.model.weight_names import naming_of

TOLERANCE = 1e-3


def peer_of_source(source: str, model: SegmentAnythingModel) -> Peer | None:
    """The implementation that the weights come from, with these weights; None if it is not here."""
    if source in PRESET_FILES:  # a repository of no library's, which nothing but a file is in
        return peers.meta_peer(model)
    source = (preset_repository(source) if source in PRESETS else None) or source
    path = Path(source)
    if path.is_file():
        naming = naming_of(read_weights([path]))
        return peers.meta_peer(model) if naming in ("meta", "mobile_sam") else None
    if path.is_dir() or source.count("/") == 1:
        config, _ = PreTrainedConfig.get_config_dict(source)
        if config.get("model_type") == "sam":
            return peers.transformers_peer(source)
    return None


_PEERS: dict[str, Callable[[Path, SegmentAnythingModel], Peer | None]] = {
    "segment_anything": lambda folder, model: peers.own_peer(folder),
    "huggingface": lambda folder, model: peers.transformers_peer(folder),
    "meta": lambda folder, model: peers.meta_peer(model, next(folder.glob("*.pt*"))),
    "onnx": lambda folder, model: peers.onnx_peer(folder),
    "tf_saved_model": lambda folder, model: peers.saved_model_peer(folder, model),
    "litert": lambda folder, model: peers.tflite_peer(folder, model),
}


def peer_of_result(to: str, folder: Path, model: SegmentAnythingModel) -> Peer | None:
    """What runs the folder that was written; None where it is not installed."""
    return _PEERS[to](folder, model)


@torch.no_grad()
def compare(model: SegmentAnythingModel, others: Sequence[Peer]) -> list[Comparison]:
    """Largest differences over whole tensors, for points, a box, and both."""
    pixels, prompts = _example(model)
    embeddings = model.get_image_embeddings(pixels)
    expected = {
        kind: model(image_embeddings=embeddings, **given) for kind, given in prompts.items()
    }
    comparisons = []
    for peer in others:
        differences = {"embeddings": _difference(peer.encode(pixels), embeddings)}
        for kind, given in prompts.items():
            logits, scores = peer.decode(embeddings, given)
            differences[f"logits of {kind}"] = _difference(logits, expected[kind].pred_masks)
            differences[f"scores of {kind}"] = _difference(scores, expected[kind].iou_scores)
        rounded = {name: absolute for name, (absolute, _) in differences.items()}
        agrees = all(relative <= TOLERANCE for _, relative in differences.values())
        comparisons.append(Comparison(peer.name, rounded, TOLERANCE, agrees))
    return comparisons


def _example(model: SegmentAnythingModel) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """An image of noise, and prompt sets of every kind, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    pixels = torch.randn(1, config.in_channels, *config.input_size, generator=generator)
    size_wh = torch.tensor(config.input_size[::-1])
    points: dict[str, Tensor] = {
        "input_points": torch.rand(1, 2, 3, 2, generator=generator) * size_wh,
        "input_labels": torch.tensor([[[1, 0, 1], [1, 1, 0]]]),
    }
    corners = torch.rand(1, 2, 2, 2, generator=generator).sort(dim=2).values * size_wh
    box = {"input_boxes": corners.flatten(2)}
    return pixels, {"points": points, "boxes": box, "points and boxes": {**points, **box}}


def _difference(made: Any, expected: Tensor) -> tuple[float, float]:
    """Largest difference, and the same over the largest value where that is above 1."""
    if tuple(made.shape) != tuple(expected.shape):
        return float("inf"), float("inf")
    absolute = float(np.abs(np.asarray(made) - np.asarray(expected)).max())
    return absolute, absolute / max(1.0, float(expected.abs().max()))
