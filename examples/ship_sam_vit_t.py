"""Puts trained weights into the package: `python -m examples.ship_sam_vit_t run/model`.

They are stored in float16, but the frequencies of the position encoding, and computed in float32.
Of several models, such as the states of one training after each fall of the learning rate, the mean
is shipped: what is chance in each goes away.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from segment_anything_transformers.model.checkpoints import WEIGHTS_FOLDER
from segment_anything_transformers.model.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.model.image_processing_segment_anything import (
    SegmentAnythingImageProcessor,
)
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.processing_segment_anything import SegmentAnythingProcessor
from segment_anything_transformers.model.remote_code import CarriesCode

NAME = "sam_vit_t"


def ship(sources: list[Path], folder: Path) -> None:
    """Writes configuration, weights and processor of the mean of the trained models.

    Args:
        sources: Folders of models, as the training writes them.
        folder: Where the package looks for its weights.
    """
    states = [SegmentAnythingModel.from_pretrained(source).state_dict() for source in sources]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    config = SegmentAnythingModelConfig.from_preset(NAME, dtype="float32")
    config.architectures = [SegmentAnythingModel.__name__]
    weights = {
        name: tensor if "pe_layer" in name else tensor.to(torch.float16)
        for name, tensor in mean.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "model.safetensors.tmp"
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # safetensors writes files that nobody else may read
    unfinished.rename(folder / "model.safetensors")
    processor = SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(config))
    parts: tuple[Any, ...] = (config, processor)
    for part in parts:
        super(CarriesCode, part).save_pretrained(folder)  # no copies of the code beside the code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=Path, nargs="+", help="folders of trained models")
    ship(parser.parse_args().sources, WEIGHTS_FOLDER / NAME)
