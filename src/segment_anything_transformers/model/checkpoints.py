"""Reads Segment Anything weights of any origin, as numpy knows them, for either framework.

A checkpoint differs from a model of ours in four ways, each undone by a rule that stands once:
what is around its weights (`checkpoint_files.py`), its names (`weight_names.py`; ours are those of
Meta's checkpoints), its configuration (`huggingface_sam.py`, or told by the shapes of the weights),
and its arrays (`weight_arrays.py`).
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .checkpoint_files import ENDINGS, read_weights
from .configuration_segment_anything import (
    PRESET_FILES,
    PRESETS,
    SegmentAnythingModelConfig,
    is_preset,
    preset_of,
    preset_repository,
)
from .weight_arrays import Weights, adapt_weights, check_values
from .weight_names import to_our_names

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"

_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"

# ------------------------------------------------------------------------------- configurations


def config_fields_from_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration that the shapes of weights under our names tell.

    The number of the decoder's heads leaves no trace in the shapes: it is that of the preset with
    these widths and depths, or else the default, as in all of Meta's models.

    Raises:
        ValueError: These are not the weights of a Segment Anything model.
    """
    try:
        return _fields_from_shapes({name: tuple(w.shape) for name, w in weights.items()})
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"These are not the weights of a Segment Anything model: {error} is missing among "
            f"{len(weights)} names such as {sorted(weights)[:3]}."
        ) from error


def _fields_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    is_tiny = "image_encoder.patch_embed.seq.0.weight" in shapes
    encoder = _tiny_vit_from_shapes(shapes) if is_tiny else _vit_from_shapes(shapes)
    fields = {
        **encoder,
        "embed_dim": shapes["image_encoder.neck.0.weight"][0],
        "nb_multimask_outputs": shapes["mask_decoder.mask_tokens.weight"][0] - 1,
        "prompt_mask_hidden_dim": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        "decoder_nb_blocks": _count(shapes, "mask_decoder.transformer.layers"),
        "decoder_mlp_channels": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        "decoder_iou_head_depth": _count(shapes, "mask_decoder.iou_prediction_head.layers"),
        "decoder_iou_hidden_dim": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
    }
    name = preset_of(fields)
    return {**PRESETS.get(name, {}), **fields, "name": name, "url": ""}


def _vit_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    width, channels, patch, _ = shapes["image_encoder.patch_embed.proj.weight"]
    _, grid_h, grid_w, _ = shapes["image_encoder.pos_embed"]
    blocks = _count(shapes, "image_encoder.blocks")
    block = "image_encoder.blocks.{}.attn.rel_pos_h"
    tables = [shapes[block.format(i)] for i in range(blocks)]
    windows = {length for length, _ in tables if length != 2 * grid_h - 1}
    return {
        "in_channels": channels,
        "input_size": (grid_h * patch, grid_w * patch),
        "encoder_patch_size": patch,
        "encoder_embed_dim": width,
        "encoder_nb_blocks": blocks,
        "encoder_nb_heads": width // tables[0][1],
        "encoder_mlp_ratio": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0] / width,
        "encoder_qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in shapes,
        "encoder_global_attn_indices": tuple(
            i for i, (length, _) in enumerate(tables) if length == 2 * grid_h - 1
        ),
        "encoder_window_size": (windows.pop() + 1) // 2 if windows else 0,
    }


def _tiny_vit_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The input size leaves no trace: there are no absolute positions."""
    layers = "image_encoder.layers"
    first, channels, *_ = shapes["image_encoder.patch_embed.seq.0.weight"]
    stages = range(_count(shapes, layers))
    attentions = [f"{layers}.{stage}.blocks.0.attn" for stage in stages[1:]]
    biases = [shapes[f"{name}.attention_biases"] for name in attentions]
    widths = [shapes[f"{name}.norm.weight"][0] for name in attentions]
    hidden = shapes[f"{layers}.1.blocks.0.mlp.fc1.weight"][0]
    return {
        "encoder_type": "tiny_vit",
        "encoder_norm_layer": PRESETS["mobile_sam"]["encoder_norm_layer"],
        "first_conv": PRESETS["mobile_sam"]["first_conv"],
        "in_channels": channels,
        "encoder_mlp_ratio": hidden / widths[0],
        "encoder_qkv_bias": f"{attentions[0]}.qkv.bias" in shapes,
        "encoder_stage_widths": (2 * first, *widths),
        "encoder_stage_depths": tuple(_count(shapes, f"{layers}.{n}.blocks") for n in stages),
        "encoder_stage_heads": tuple(heads for heads, _ in biases),
        "encoder_stage_windows": tuple(math.isqrt(offsets) for _, offsets in biases),
    }


def _count(names: Iterable[str], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, names) if match})


# ---------------------------------------------------------------------------------------- files


def load_checkpoint(
    source: str | os.PathLike[str],
    config_class: type[SegmentAnythingModelConfig],
    config: SegmentAnythingModelConfig | str | os.PathLike[str] | None,
    options: dict[str, Any],
    framework: str = "pt",
) -> tuple[SegmentAnythingModelConfig, Weights, dict[str, Any]]:
    """Configuration and weights, under our names and in the configuration's sizes.

    Args:
        source: A preset's name, a folder, a Hub repository, or a file of weights.
        config_class: Class of the configuration.
        config: The configuration to use instead of the checkpoint's, or where to find it.
        options: Options of the Hub, fields of the configuration to replace, and others.
        framework: "pt" for PyTorch tensors, "np" for numpy arrays.

    Returns:
        The configuration, the weights, and the options that were none of ours.

    Raises:
        OSError: The source does not exist or cannot be read.
        ValueError: The file does not hold a Segment Anything model, its weights are NaN, infinite
            or integers, or its configuration is none.
    """
    location = _locate(str(source))
    source = str(source)
    if _is_path(location) and not os.path.exists(location):
        raise FileNotFoundError(
            f"{location} does not exist. The presets are {', '.join(PRESETS)}; a Hub repository is "
            "written owner/name."
        )
    hub = {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    files = [location] if os.path.isfile(location) else _weight_files(location, hub)
    weights = to_our_names(read_weights(files, framework))
    check_values(weights, source)
    # Not asked as isinstance of our class, which as remote code is loaded once for every file.
    if config is not None and not isinstance(config, (str, os.PathLike)):
        return config, adapt_weights(weights, config), options
    if config is None and not is_preset(str(source)) and _lacks_config(location, hub):
        fields = config_fields_from_weights(weights)
        made, options = config_class.from_dict(fields, return_unused_kwargs=True, **options)
    else:
        named = location if os.path.isdir(location) else source
        origin = str(named if config is None else config)
        made, options = _read_config(config_class, origin, {**hub, **options})
    return made, adapt_weights(weights, made), options


def _read_config(
    config_class: type[SegmentAnythingModelConfig], origin: str, options: dict[str, Any]
) -> tuple[SegmentAnythingModelConfig, dict[str, Any]]:
    """The configuration that lies somewhere; ValueError with that place if its types are wrong."""
    try:
        made, unused = config_class.from_pretrained(origin, return_unused_kwargs=True, **options)
        return made, unused
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        fields = config_class.__annotations__
        if any(name in fields for name in options):
            raise  # what was passed may be wrong, and not what was read
        raise ValueError(f"The configuration of {origin} cannot be used: {error}") from error


def _locate(source: str) -> str:
    """Folder, file or repository that a name stands for."""
    if is_preset(source):
        return preset_repository(source) or str(WEIGHTS_FOLDER / source)
    return source


def _is_path(location: str) -> bool:
    """Whether a name can only mean a file or folder: a repository has one slash and no suffix."""
    is_file_name = Path(location).suffix in ENDINGS
    return is_file_name or os.path.isabs(location) or location.count(os.sep) != 1


def _lacks_config(location: str, hub: dict[str, Any]) -> bool:
    """Whether the weights have to tell the configuration: a file, or nothing for Transformers."""
    if os.path.isdir(location):
        return not os.path.exists(os.path.join(_folder(location, hub), CONFIG_NAME))
    return os.path.isfile(location) or _known_file(location) is not None


def _folder(location: str, hub: dict[str, Any]) -> str:
    return os.path.join(location, hub.get("subfolder") or "")


def _known_file(repository: str) -> tuple[str, str] | None:
    """Name and hash of the weights in the repository of a preset that has no configuration."""
    names = [name for name in PRESET_FILES if preset_repository(name) == repository]
    return PRESET_FILES[names[0]] if names else None


def _weight_files(location: str, hub: dict[str, Any]) -> list[str]:
    """Local paths of a folder's or repository's weights, one path a shard."""
    optional = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": True,
    }
    known = None if os.path.isdir(location) else _known_file(location)
    if known is not None:
        return [_verified(str(cached_file(location, known[0], **hub)), known[1])]
    for name in (SAFETENSORS, SAFETENSORS_INDEX, _PICKLE):
        path = cached_file(location, name, **hub, **optional)
        if path is None:
            continue
        if name == SAFETENSORS_INDEX:
            _check_index(path)
            return get_checkpoint_shard_files(location, path, **hub)[0]
        return [path]
    return [_only_file(location, hub)]


def _verified(path: str, sha256: str) -> str:
    """The path of a file that is the one that this version knows.

    Raises:
        OSError: It is another one.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise OSError(
            f"{path} is not the file that this preset names: its SHA-256 is {found}, expected "
            f"{sha256}. Download it again, or give its path if it is the one that you want."
        )
    return path


def _only_file(location: str, hub: dict[str, Any]) -> str:
    """The one file of weights in a folder, whatever its name.

    Raises:
        OSError: There is none, or there are several.
    """
    folder = Path(_folder(location, hub))
    found = sorted(path.name for path in folder.glob("*") if path.suffix in ENDINGS)
    if len(found) == 1:
        return str(folder / found[0])
    if found:
        raise OSError(
            f"{location} has several files of weights, {', '.join(found[:5])}, and none is named "
            f"{SAFETENSORS}. Give the path of one."
        )
    raise OSError(
        f"{location} has no {SAFETENSORS}, {SAFETENSORS_INDEX} or {_PICKLE}. Give a folder that "
        "save_pretrained has written, a Hub repository, a .pth file, or one of the presets "
        f"{', '.join(PRESETS)}."
    )


def _check_index(path: str) -> None:
    """Refuses an index that names no files, or files beyond its folder.

    Raises:
        ValueError: It is no JSON object with a "weight_map" of names to files beside it.
    """
    try:
        index = json.loads(Path(path).read_text())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not JSON: {type(error).__name__}.") from error
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files or "metadata" not in index:
        raise ValueError(
            f'{path} must be an object with "metadata" and a "weight_map", the file of each weight.'
        )
    for file in files.values():
        name = file if isinstance(file, str) else ""
        names = {PurePosixPath(name).name, PureWindowsPath(name).name}
        if name in ("", ".", "..") or names != {name}:
            raise ValueError(
                f"{path} must name files beside it, got {file!r}. Nothing outside its folder is "
                "read."
            )
