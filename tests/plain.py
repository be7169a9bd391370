"""Encoder, decoder and mask generation as the paper has them, every tensor written out.

It is what ours must equal.

Slow and large on purpose. The functions use the weights of a `SegmentAnythingModel` and nothing
else of it. Not for padded prompts.
"""

import torch
from torch.nn import functional as F

from segment_anything_transformers.model.image_processing_segment_anything import (
    SegmentAnythingImageProcessor,
)


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


def encode(model, pixel_values):
    """Image embeddings (N, D, H'', W'')."""
    encoder = model.image_encoder
    tokens = encoder.patch_embed.proj(pixel_values).permute(0, 2, 3, 1) + encoder.pos_embed
    for block in encoder.blocks:
        normalised = norm(block.norm1, tokens)
        side = block.attn.window_size
        attended = in_windows(block.attn, normalised, side) if side else mix(block.attn, normalised)
        tokens = tokens + attended
        tokens = tokens + block.mlp(norm(block.norm2, tokens))
    return encoder.neck(tokens.permute(0, 3, 1, 2))


def in_windows(attention, tokens, side, mix_all=None):
    """Each window of side x side tokens alone; the grid is filled up with zeros."""
    grid_h, grid_w = tokens.shape[1:3]
    padded = F.pad(tokens, (0, 0, 0, -grid_w % side, 0, -grid_h % side))
    mixed = torch.empty_like(padded)
    for top in range(0, padded.shape[1], side):
        for left in range(0, padded.shape[2], side):
            window = (slice(None), slice(top, top + side), slice(left, left + side))
            mixed[window] = (mix_all or mix)(attention, padded[window])
    return mixed[:, :grid_h, :grid_w]


def mix(attention, tokens):
    """Attention of all tokens (N, h, w, C) to all."""
    height, width = tokens.shape[1:3]
    query, key, value = (
        heads_of(part.flatten(1, 2), attention.heads) for part in attention.qkv(tokens).chunk(3, -1)
    )
    scores = query @ key.mT / query.shape[-1] ** 0.5
    scores = scores.unflatten(3, (height, width)).unflatten(2, (height, width))
    row, column = torch.arange(height), torch.arange(width)
    relative_h = attention.rel_pos_h[row[:, None] - row + height - 1]
    relative_w = attention.rel_pos_w[column[:, None] - column + width - 1]
    query = query.unflatten(2, (height, width))
    scores = scores + torch.einsum("nhyxc,ykc->nhyxk", query, relative_h)[..., None]
    scores = scores + torch.einsum("nhyxc,xkc->nhyxk", query, relative_w)[..., None, :]
    mixed = scores.flatten(4).flatten(2, 3).softmax(-1) @ value
    return attention.proj(mixed.transpose(1, 2).flatten(2)).view_as(tokens)


def encode_tiny_vit(model, pixel_values):
    """Image embeddings (N, D, H'', W'') of a TinyViT."""
    encoder = model.image_encoder
    features = encoder.patch_embed.seq[2](F.gelu(encoder.patch_embed.seq[0](pixel_values)))
    for number, stage in enumerate(encoder.layers):
        for block in stage.blocks:
            features = (
                window_block(block, features) if number else narrow_and_widen(block, features)
            )
        if number < 3:
            merge = stage.downsample
            features = merge.conv3(F.gelu(merge.conv2(F.gelu(merge.conv1(features)))))
    return encoder.neck(features)


def narrow_and_widen(block, features):
    wide = F.gelu(block.conv2(F.gelu(block.conv1(features))))
    return F.gelu(features + block.conv3(wide))


def window_block(block, features):
    tokens = features.permute(0, 2, 3, 1)
    tokens = tokens + in_windows(block.attn, tokens, block.attn.window_size, mix_by_distance)
    tokens = block.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    mlp = block.mlp
    tokens = tokens + mlp.fc2(F.gelu(mlp.fc1(norm(mlp.norm, tokens))))
    return tokens.permute(0, 3, 1, 2)


def mix_by_distance(attention, tokens):
    """Attention of all tokens (N, h, w, C) to all, the norm before it, a bias by (|dy|, |dx|)."""
    side = attention.window_size
    normalised = norm(attention.norm, tokens).flatten(1, 2)
    query, key, value = attention.qkv(normalised).unflatten(2, (attention.heads, 3, -1)).unbind(3)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    places = [(y, x) for y in range(side) for x in range(side)]
    for i, (y, x) in enumerate(places):
        for j, (other_y, other_x) in enumerate(places):
            offset = side * abs(y - other_y) + abs(x - other_x)
            scores[:, :, i, j] += attention.attention_biases[:, offset]
    mixed = scores.softmax(-1) @ value
    return attention.proj(mixed.transpose(1, 2).flatten(2)).view_as(tokens)


def everything(model, image, points, pred_iou_thresh, stability_score_thresh, offset, box_nms):
    """Masks (n, H0, W0) and scores (n,) of everything in an image (H0, W0, 3), the best first.

    Each click is decoded alone, and each of its masks exists at the size of the model's input and
    at that of the image.
    """
    processor = SegmentAnythingImageProcessor.from_config(model.config)
    inputs = processor(image, return_tensors="pt")
    embedding = encode(model, inputs["pixel_values"])[0]
    (height, width), size_hw = inputs["reshaped_input_sizes"][0].tolist(), image.shape[:2]
    scale = torch.tensor([width / size_hw[1], height / size_hw[0]])
    found = []
    for point in torch.as_tensor(points, dtype=torch.float32):
        click = {
            "input_points": (point * scale)[None, None],
            "input_labels": torch.ones(1, 1, dtype=torch.long),
        }
        logits, scores = decode_one(model, embedding, click)
        logits = F.interpolate(logits[:, 1:], tuple(model.config.input_size), mode="bilinear")
        logits = F.interpolate(logits[..., :height, :width], size_hw, mode="bilinear")[0]
        lax, strict = ((logits > move).sum((1, 2)) for move in (-offset, offset))
        stability = strict / lax.clamp(min=1)
        is_good = (scores[0, 1:] > pred_iou_thresh) & (stability >= stability_score_thresh)
        found += [(scores[0, 1 + k].item(), logits[k] > 0) for k in is_good.nonzero()[:, 0]]
    found.sort(key=lambda pair: -pair[0])
    kept = []
    for score, mask in found:
        if all(box_iou(mask, other) <= box_nms for _, other in kept):
            kept.append((score, mask))
    return torch.stack([mask for _, mask in kept]), torch.tensor([score for score, _ in kept])


def box_iou(mask, other):
    """IoU of the boxes from the first to the last pixel of two masks."""
    spans = [
        [(axis.nonzero()[0].item(), axis.nonzero()[-1].item()) for axis in (m.any(0), m.any(1))]
        for m in (mask, other)
    ]
    shared, first, second = 1, 1, 1
    for (start, end), (other_start, other_end) in zip(*spans, strict=True):
        shared *= max(0, min(end, other_end) - max(start, other_start))
        first *= end - start
        second *= other_end - other_start
    return shared / max(first + second - shared, 1)
