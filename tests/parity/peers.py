"""The models of Meta and of Hugging Face, with the weights of a model of ours."""

import importlib
import importlib.util
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import SamConfig, SamModel

from segment_anything_transformers.configuration_segment_anything import ENCODER_NORM_EPS
from segment_anything_transformers.huggingface_sam import config_to_huggingface
from segment_anything_transformers.weight_names import to_huggingface


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
    meta, config = meta_modeling(), model.config
    side, grid = config.input_size[0], config.grid_size()
    sam = meta.Sam(
        meta.ImageEncoderViT(
            img_size=side,
            patch_size=config.encoder_patch_size,
            in_chans=config.in_channels,
            embed_dim=config.encoder_embed_dim,
            depth=config.encoder_nb_blocks,
            num_heads=config.encoder_nb_heads,
            mlp_ratio=config.encoder_mlp_ratio,
            out_chans=config.embed_dim,
            qkv_bias=config.encoder_qkv_bias,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config.encoder_window_size,
            global_attn_indexes=config.encoder_global_attn_indices,
        ),
        meta.PromptEncoder(
            config.embed_dim, grid, config.input_size, config.prompt_mask_hidden_dim
        ),
        meta.MaskDecoder(
            transformer_dim=config.embed_dim,
            transformer=meta.TwoWayTransformer(
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
    sam.load_state_dict(model.state_dict())
    return sam.eval()


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
