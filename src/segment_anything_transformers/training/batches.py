"""Samples as batches for training, and image embeddings that are computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.samples import Faults, Sample, Samples
from ..model.mask_ops import deepest_point, masks_to_boxes
from ..model.modeling_segment_anything import SegmentAnythingModel
from ..model.processing_segment_anything import SegmentAnythingProcessor


class ObjectsDataset(Dataset):
    """Images with some of their objects each: an image with many objects is several items.

    All samples are read once to find their faults and to count their objects.

    Args:
        samples: Images with true masks.
        objects_per_image: The most objects in an item; None for all that an image has.
        faults: Whether faulty samples are skipped, or refused.
        progress: Passes the indices of the samples on, such as `tqdm`.

    Raises:
        AnnotationError: Samples are faulty and not to be skipped, or all are.
    """

    def __init__(
        self,
        samples: Samples,
        objects_per_image: int | None = None,
        faults: Faults = "refuse",
        progress: Callable[[Any], Any] = iter,
    ) -> None:
        """Reads all samples."""
        counts: list[int] = []
        self.checksums: list[tuple[str, int]] = []

        def visit(sample: Sample) -> None:
            counts.append(len(sample.masks))
            content = np.ascontiguousarray(sample.image)
            self.checksums.append((f"{content.shape} {content.dtype}", zlib.crc32(content.data)))

        self.samples, self.faults = samples.sound(faults, visit, progress)
        self.items: list[tuple[int, slice]] = []
        for index, count in enumerate(counts):
            groups = 1 if objects_per_image is None else -(-count // objects_per_image)
            # Every so many objects: neighbours in the list are often neighbours in the image.
            self.items += [(index, slice(first, None, groups)) for first in range(groups)]
        self.embeddings: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def __getitem__(self, item: int) -> tuple[Sample, Tensor | None]:
        """A sample with the item's objects, and its image embeddings if they are kept."""
        index, objects = self.items[item]
        sample = self.samples[index]
        sample = Sample(sample.name, sample.image, sample.masks[objects], sample.ignored)
        if self.embeddings is None:
            return sample, None
        return sample, torch.from_numpy(np.array(self.embeddings[index]))


class Collator:
    """Makes a batch of items of `ObjectsDataset`.

    Args:
        processor: Scales images and masks.
        with_prompts: Whether each object gets a click at its deepest point and its box, as
            measuring needs them. In training prompts are drawn on the way.
    """

    def __init__(self, processor: SegmentAnythingProcessor, with_prompts: bool = False) -> None:
        """Keeps the processor."""
        self.processor = processor
        self.with_prompts = with_prompts

    def __call__(self, items: Sequence[tuple[Sample, Tensor | None]]) -> dict[str, Tensor]:
        """The arguments of the model: an image or its embeddings, labels (N, P, H', W'), prompts.

        Objects that vanish at the size of the labels, and prompt sets that an image lacks, are
        unknown throughout, -1.
        """
        samples = [sample for sample, _ in items]
        images = [sample.image for sample in samples]
        prompts: dict[str, Any] = {}
        if self.with_prompts:
            prompts["input_points"] = [[[_click(mask)] for mask in s.masks] for s in samples]
            prompts["input_boxes"] = [masks_to_boxes(s.masks).tolist() for s in samples]
        truth = [sample.truth() for sample in samples]
        inputs = self.processor(images, segmentation_maps=truth, return_tensors="pt", **prompts)
        labels = inputs["labels"].to(torch.int8)
        labels[(labels <= 0).flatten(2).all(-1)] = -1
        batch = {"labels": labels}
        batch |= {name: inputs[name] for name in inputs if name.startswith("input_")}
        embeddings = [kept for _, kept in items if kept is not None]
        if embeddings:
            return {**batch, "image_embeddings": torch.stack(embeddings)}
        return {**batch, "pixel_values": inputs["pixel_values"]}


def _click(mask: np.ndarray) -> tuple[int, int]:
    return deepest_point(mask)[1]


def keep_embeddings(
    dataset: ObjectsDataset,
    model: SegmentAnythingModel,
    processor: SegmentAnythingProcessor,
    folder: str | Path,
    progress: Callable[[Any], Any] = iter,
) -> None:
    """Encodes the images of a data set once; its items have the embeddings from now on.

    They lie in a file that is mapped into memory, named after the encoder's weights, the processor
    and the images, so that another run finds them, and a run that was cut off goes on.

    Args:
        dataset: The data set.
        model: Its image encoder is used as it is, without gradients.
        processor: Scales the images.
        folder: Where the file is.
        progress: Passes the indices of the images on, such as `tqdm`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = _fingerprint(dataset, model, processor)
    path, done_path = (Path(folder) / f"embeddings-{name}.{end}" for end in ("npy", "done"))
    done = int(done_path.read_text()) if done_path.exists() and path.exists() else 0
    array: Any = np.load(path, mmap_mode="r+") if done else None
    for index in progress(range(done, len(dataset.samples))):
        embeddings = _encode(model, processor, dataset.samples[index].image)
        if array is None:
            shape = (len(dataset.samples), *embeddings.shape)
            array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        array[index] = embeddings
        array.flush()
        done_path.write_text(str(index + 1))
    dataset.embeddings = np.load(path, mmap_mode="r")


@torch.no_grad()
def _encode(
    model: SegmentAnythingModel, processor: SegmentAnythingProcessor, image: np.ndarray
) -> np.ndarray:
    """Embeddings (D, H'', W'') of one image."""
    was_training = model.training
    model.eval()
    pixel_values = processor(image, return_tensors="pt")["pixel_values"].to(model.device)
    embeddings = model.get_image_embeddings(pixel_values)[0].float().cpu().numpy()
    model.train(was_training)
    return embeddings


def _fingerprint(
    dataset: ObjectsDataset, model: SegmentAnythingModel, processor: SegmentAnythingProcessor
) -> str:
    """A name that changes with whatever the embeddings depend on."""
    digest = hashlib.sha256()
    for name, tensor in model.image_encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    description = [processor.image_processor.to_dict(), model.config.to_dict(), dataset.checksums]
    digest.update(json.dumps(description, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
