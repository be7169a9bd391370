"""Samples as batches for the `fit` of `TFSegmentAnythingModel`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from ..data.samples import Faults, Sample, Samples
from ..model.loss_tf_segment_anything import first_prompts
from ..model.processing_segment_anything import SegmentAnythingProcessor


class ObjectBatches(keras.utils.PyDataset):
    """Batches of images with some of their objects each, and a click or a noisy box for each.

        model.compile(keras.optimizers.AdamW(1e-4))
        model.fit(ObjectBatches(load_samples("cells"), processor), epochs=10)

    All samples are read once to find their faults.

    Args:
        samples: Images with true masks.
        processor: Scales images and masks.
        batch_size: Images in a batch; the last may have fewer.
        objects_per_image: Objects of each image in a batch; others come in other epochs, and an
            image with fewer has some of them twice.
        faults: Whether faulty samples are skipped, or refused.
        seed: Of the order, the objects and the prompts.
        kwargs: What `keras.utils.PyDataset` takes, such as `workers`.

    Raises:
        AnnotationError: Samples are faulty and not to be skipped, or all are.
    """

    def __init__(
        self,
        samples: Samples,
        processor: SegmentAnythingProcessor,
        batch_size: int = 4,
        objects_per_image: int = 4,
        faults: Faults = "refuse",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        """Reads all samples."""
        super().__init__(**kwargs)
        self.samples, self.faults = samples.sound(faults)
        self.processor = processor
        self.batch_size = batch_size
        self.objects_per_image = objects_per_image
        self._random = np.random.default_rng(seed)
        self._prompt_seed = keras.random.SeedGenerator(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Inputs by the processor's names, and true masks (N, P, H', W') int64, -1 for unknown.

        Objects that vanish at the size of the masks are unknown throughout.
        """
        start = index * self.batch_size
        chosen = self._order[start : start + self.batch_size]
        samples = [self._some_objects(self.samples[int(at)]) for at in chosen]
        images, maps = [s.image for s in samples], [s.truth() for s in samples]
        inputs = self.processor(images, segmentation_maps=maps, return_tensors="np")
        labels, pixels = inputs["labels"], inputs["pixel_values"]
        labels = np.where((labels > 0).any(axis=(2, 3), keepdims=True), labels, -1)
        prompts = first_prompts(labels > 0, labels >= 0, pixels.shape[2:], self._prompt_seed)
        names = ("input_points", "input_labels", "input_boxes")
        arrays = {
            name: ops.convert_to_numpy(array) for name, array in zip(names, prompts, strict=True)
        }
        return {"pixel_values": pixels, **arrays}, labels

    def on_epoch_end(self) -> None:
        """Puts the images in another order."""
        self._order = self._random.permutation(len(self.samples))

    def _some_objects(self, sample: Sample) -> Sample:
        order = np.resize(self._random.permutation(len(sample.masks)), self.objects_per_image)
        return Sample(sample.name, sample.image, sample.masks[order], sample.ignored)
