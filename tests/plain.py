"""Encoder and decoder as the paper draws them, every tensor written out: what ours must equal.

Slow and large on purpose. The functions use the weights of a `SegmentAnythingModel` and nothing
else of it. Not for padded prompts.
"""

import torch
from torch.nn import functional as F


def heads_of(tokens, heads):
    """(..., T, h c) as (..., h, T, c)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(-2, -3)


def attend(layer, query, key, value):
    query, key, value = (
        heads_of(projection(tokens), layer.heads)
        for projection, tokens in (
            (layer.q_proj, query),
            (layer.k_proj, key),
            (layer.v_proj, value),
        )
    )
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    mixed = scores.softmax(-1) @ value
    return layer.out_proj(mixed.transpose(-2, -3).flatten(-2))


def norm(layer, tokens):
    return F.layer_norm(tokens, layer.weight.shape, layer.weight, layer.bias, layer.eps)


def two_way_transformer(transformer, tokens, image, positions):
    """Tokens (P, T, D) and image (P, L, D)."""
    placed = tokens
    for index, layer in enumerate(transformer.layers):
        if index == 0:
            tokens = attend(layer.self_attn, tokens, tokens, tokens)
        else:
            query = tokens + placed
            tokens = tokens + attend(layer.self_attn, query, query, tokens)
        tokens = norm(layer.norm1, tokens)
        seen = attend(layer.cross_attn_token_to_image, tokens + placed, image + positions, image)
        tokens = norm(layer.norm2, tokens + seen)
        tokens = norm(layer.norm3, tokens + layer.mlp(tokens))
        seen = attend(layer.cross_attn_image_to_token, image + positions, tokens + placed, tokens)
        image = norm(layer.norm4, image + seen)
    seen = attend(transformer.final_attn_token_to_image, tokens + placed, image + positions, image)
    return norm(transformer.norm_final_attn, tokens + seen), image


def decode(model, image_embeddings, **prompts):
    """Logits (N, P, 1 + K, H', W') and scores (N, P, 1 + K) of all masks."""
    pairs = [
        decode_one(model, embedding, {name: prompt[index] for name, prompt in prompts.items()})
        for index, embedding in enumerate(image_embeddings)
    ]
    return tuple(torch.stack(parts) for parts in zip(*pairs, strict=True))


def decode_one(model, embedding, prompts):
    decoder = model.mask_decoder
    depth, grid_h, grid_w = embedding.shape
    sparse, dense = model.get_prompt_embeddings(
        **{name: prompt[None] for name, prompt in prompts.items()},
        input_size=(
            grid_h * model.config.encoder_patch_size,
            grid_w * model.config.encoder_patch_size,
        ),
    )
    if "input_points" in prompts and "input_boxes" in prompts:
        end = prompts["input_points"].shape[1]  # "not a point" stands there, for want of a box
        sparse = torch.cat([sparse[:, :, :end], sparse[:, :, end + 1 :]], dim=2)
    sets = max(dense.shape[1], 1 if sparse is None else sparse.shape[1])
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = outputs.expand(sets, -1, -1)
    if sparse is not None:
        tokens = torch.cat([tokens, sparse[0]], dim=1)
    image = (embedding + dense[0]).expand(sets, depth, grid_h, grid_w).flatten(2).mT
    positions = model.prompt_encoder.pe_layer.of_grid(grid_h, grid_w).flatten(0, 1)
    tokens, image = two_way_transformer(decoder.transformer, tokens, image, positions)
    upscaled = decoder.output_upscaling(image.mT.unflatten(2, (grid_h, grid_w)))
    weights = torch.stack(
        [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    logits = torch.einsum("pkc,pchw->pkhw", weights, upscaled)
    return logits, decoder.iou_prediction_head(tokens[:, 0])
