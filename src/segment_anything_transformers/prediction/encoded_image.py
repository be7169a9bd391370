"""An image as a model takes it, and encoded: in memory or in a file, to ask prompts about."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..model.image_processing_segment_anything import ImageResizer
from .backends import Backend
from .whole_files import whole_file


class PreparedImage(NamedTuple):
    """An image as the model takes it."""

    pixel_values: np.ndarray
    """(C, H, W) float32, resized, normalised and padded."""
    resizer: ImageResizer
    """Knows its original size and where it lies in the input."""


class EncodedImage(NamedTuple):
    """An image that prompts can be asked about without encoding it again.

    `SAMPredictor.encode_image` makes it, `SAMPredictor.set_encoded` and
    `SAMAutomaticMaskGenerator.generate` take it, from any predictor of the same model.
    """

    image_embeddings: Any
    """A tensor of the model's framework in its own order of axes, or an array (1, D, H'', W'')."""
    resizer: ImageResizer
    """Knows the image's original size and where it lies in the model's input."""
    pixels: np.ndarray | None = None
    """The image (H0, W0, C) if it is known: only then can it be zoomed, or searched in crops."""
    model_name: str = ""
    """Name of the configuration of the model that encoded it, where it has one."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], input_size: tuple[int, int] | None = None) -> Self:
        """An encoded image from a file, such as `SAMPredictor.save_encoded` writes.

        The file, safetensors or npz, has `image_embeddings` (1, D, H'', W''), `original_size`
        (H0, W0) and, if not of the size that is given here, `input_size` (H, W).

        Args:
            path: The file.
            input_size: Size (H, W) of the model's input where the file does not tell it.

        Raises:
            OSError: There is no such file.
            ValueError: It is no such file, or lacks what it should have.
        """
        arrays = _read(Path(path))
        if input_size is not None:
            arrays.setdefault("input_size", np.array(input_size))
        missing = [name for name in _NAMES if name not in arrays]
        if missing:
            raise ValueError(
                f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}, and not "
                f"{' and '.join(missing)}. SAMPredictor.save_encoded writes such files; with numpy "
                "it is np.savez(path, image_embeddings=predictor.image_embeddings, "
                "original_size=predictor.original_size)."
            )
        original_size, input_size = (_size(path, name, arrays[name]) for name in _NAMES[1:])
        resizer = ImageResizer(original_size, input_size)
        name = bytes(arrays.get("model_name", np.zeros(0, np.uint8))).decode()
        return cls(arrays["image_embeddings"], resizer, None, name)

    def save(self, path: str | os.PathLike[str], image_embeddings: np.ndarray) -> None:
        """Writes a file that `load` reads; `SAMPredictor.save_encoded` is the way to call it.

        Args:
            path: The file, `.safetensors` or `.npz`.
            image_embeddings: The embeddings as an array (1, D, H'', W'').

        Raises:
            ValueError: The path has another ending.
        """
        path = Path(path)
        write = _WRITERS.get(path.suffix)
        if write is None:
            raise ValueError(f"The path must end in {' or '.join(_WRITERS)}, got {path}.")
        sizes = (np.array(size) for size in (self.resizer.src_size, self.resizer.dst_size))
        # Of an array with another order in memory safetensors writes the wrong values.
        embeddings = np.ascontiguousarray(image_embeddings)
        arrays = dict(zip(_NAMES, (embeddings, *sizes), strict=True))
        arrays["model_name"] = np.frombuffer(self.model_name.encode(), np.uint8)
        with whole_file(path) as file:
            write(file, arrays)


def model_name(backend: Backend) -> str:
    """Name of the model that encodes, empty if it has none."""
    return getattr(backend.config, "name", "")


def fitted(image: Any, backend: Backend) -> EncodedImage:
    """An encoded image or its file, in the form of a model's framework.

    Raises:
        OSError: There is no such file.
        TypeError: It is neither an encoded image nor a path.
        ValueError: It is of another model.
    """
    input_size = backend.config.input_size
    if isinstance(image, (str, os.PathLike)):
        image = EncodedImage.load(image, input_size)
    if not isinstance(image, EncodedImage):
        raise TypeError(
            "An EncodedImage is taken, such as encode_image(image) returns, or the path of a file "
            f"that save_encoded wrote, got {type(image).__name__}. For an image itself there is "
            "set_image."
        )
    name = model_name(backend)
    if image.model_name and name and image.model_name != name:
        raise ValueError(
            f"The image was encoded by {image.model_name}, and this model is {name}: what one "
            "encodes means nothing to another. Call set_image."
        )
    if image.resizer.dst_size != input_size:
        raise ValueError(
            f"The image was encoded in an input of {image.resizer.dst_size} pixels, and this model "
            f"has one of {input_size}. Call set_image."
        )
    return image._replace(image_embeddings=backend.from_numpy(image.image_embeddings))


_NAMES = ("image_embeddings", "original_size", "input_size")


def _write_safetensors(file: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    file.write(save(arrays))


def _write_npz(file: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    np.savez(file, allow_pickle=False, **arrays)


_WRITERS: dict[str, Callable[[IO[bytes], dict[str, np.ndarray]], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
}


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; no pickle is read."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {**file}
        if path.suffix == ".safetensors":
            return load_file(path)
    except (SafetensorError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no file of an encoded image: {error}") from error
    raise ValueError(f"The path must end in {' or '.join(_WRITERS)}, got {path}.")


def _size(path: Any, name: str, values: np.ndarray) -> tuple[int, int]:
    if values.shape != (2,) or not np.issubdtype(values.dtype, np.integer) or values.min() < 1:
        raise ValueError(f"{name} in {path} must be two positive integers, got {values.tolist()}.")
    return int(values[0]), int(values[1])
