"""The models of Meta and of Hugging Face, with the weights of a model of ours."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
from transformers import SamConfig, SamModel

from conversion.peers import build_meta_sam
from segment_anything_transformers.model.configuration_segment_anything import ENCODER_NORM_EPS
from segment_anything_transformers.model.huggingface_sam import config_to_huggingface
from segment_anything_transformers.model.weight_names import to_huggingface


def meta_modeling() -> types.ModuleType:
    """Meta's `segment_anything.modeling`, without its package, which needs torchvision."""
    if "segment_anything" not in sys.modules:
        location: Any = importlib.util.find_spec("segment_anything")
        parent = types.ModuleType("segment_anything")
        parent.__path__ = [str(Path(location.origin).parent)]
        parent.__spec__ = location
        sys.modules["segment_anything"] = parent
    return importlib.import_module("segment_anything.modeling")


def meta_model(model) -> torch.nn.Module:
    """Meta's Sam with the same weights."""
    return build_meta_sam(meta_modeling(), model)


def huggingface_model(model) -> SamModel:
    """Transformers' SamModel with the same weights."""
    config = SamConfig(**config_to_huggingface(model.config, ENCODER_NORM_EPS))
    peer = SamModel(config).eval()
    missing, unexpected = peer.load_state_dict(to_huggingface(model.state_dict()), strict=False)
    assert missing == ["prompt_encoder.shared_embedding.positional_embedding"]
    assert unexpected == []
    peer.tie_weights()
    return peer


def decode_with_meta(sam, embedding, points, labels, boxes, masks, multimask_output):
    """Logits (P, K, H', W') and scores (P, K) for the prompt sets of one image."""
    tokens, dense = sam.prompt_encoder(None if points is None else (points, labels), boxes, masks)
    positions = sam.prompt_encoder.get_dense_pe()
    return sam.mask_decoder(embedding[None], positions, tokens, dense, multimask_output)
