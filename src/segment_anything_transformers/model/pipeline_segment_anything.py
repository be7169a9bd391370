"""The mask-generation pipeline for several images at a time and for grids of unequal size."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from transformers.pipelines import MaskGenerationPipeline

from .image_arrays import read_source
from .pictures import RGB


class SegmentAnythingMaskGenerationPipeline(MaskGenerationPipeline):
    """Does what transformers' pipeline does, also with `batch_size`, and no work twice.

        pipeline("mask-generation", model=model, image_processor=image_processor,
                 pipeline_class=SegmentAnythingMaskGenerationPipeline)

    Images are read by the rule of this package: of more than 8 bits they are stretched, where
    transformers' own reader clips them to white.

    Two things that an image processor cannot put right for the pipeline of transformers:

    - With `batch_size` above 1 that one joins the pieces of an image, up to `points_per_batch`
      points each, and then looks at the first piece only. `points_per_batch` already says how many
      points the model sees at once, so here `batch_size` changes nothing.
    - It takes as many points from each crop as from the whole image. With
      `crop_n_points_downscale_factor` above 1 the image processor fills the smaller grids up with
      a point that is there already; here such points are left out.
    """

    def get_iterator(self, inputs: Any, num_workers: int, batch_size: int, *args: Any) -> Any:
        """Results of several images, one after another."""
        return super().get_iterator(inputs, num_workers, 1, *args)

    def preprocess(  # type: ignore[override]
        self, image: Any, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Pieces of the work on an image, without the points that fill up smaller grids.

        The image is a path, a URL or a PIL image, and is read as everywhere in this package.
        """
        if isinstance(image, (str, Image.Image)):
            image = Image.fromarray(np.moveaxis(read_source(image, RGB), 0, -1))
        seen: set[tuple[float, ...]] = set()
        waiting: dict[str, Any] = {}
        for piece in super().preprocess(image, **kwargs):
            crop_box = piece["input_boxes"][0].tolist()
            new = []
            for index, point in enumerate(piece["input_points"][0, :, 0].tolist()):
                if (*crop_box, *point) not in seen:
                    seen.add((*crop_box, *point))
                    new.append(index)
            if not new:  # the piece to be yielded before may now be the last
                waiting["is_last"] = waiting["is_last"] or piece["is_last"]
                continue
            if waiting:
                yield waiting
            for name in ("input_points", "input_labels"):
                piece[name] = piece[name][:, new]
            waiting = piece
        yield waiting
