"""Samples: images with the true masks of their objects, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..model.pictures import UNREADABLE

_FAULTS_LISTED = 10

Faults = Literal["refuse", "skip"]


class AnnotationError(ValueError):
    """A fault of the data; the message begins with the sample's name."""


@dataclass(frozen=True)
class Sample:
    """An image and the masks of its objects."""

    name: str
    image: np.ndarray
    """(H0, W0) or (H0, W0, C), uint8 or uint16, or finite floats where the source has such."""
    masks: np.ndarray
    """(P, H0, W0) bool, none of them empty."""
    ignored: np.ndarray | None = None
    """(H0, W0) bool, True where the truth is not known."""

    def truth(self) -> np.ndarray:
        """The masks as (P, H0, W0) int8: 1, 0, or -1 where the truth is not known."""
        labels = self.masks.astype(np.int8)
        if self.ignored is not None:
            labels[:, self.ignored] = -1
        return labels


class Samples(Sequence[Sample]):
    """Samples that are read when they are asked for, each time anew.

    Args:
        names: What messages call the samples.
        read: Image and masks of the sample with an index, and where its truth is not known; a
            ValueError or OSError is a fault of the data.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    ) -> None:
        """Keeps the names; nothing is read yet."""
        self.names = list(names)
        self._read = read

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        """The sample with this index, or the samples of a slice.

        Raises:
            AnnotationError: The sample cannot be read, or its masks make no sense.
        """
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        name = self.names[index]
        try:
            image, masks, ignored = self._read(range(len(self))[index])
            return _checked(Sample(name, image, masks, ignored))
        except UNREADABLE as error:
            raise AnnotationError(f"{name}: {' '.join(str(error).split())}") from error

    def take(self, indices: Sequence[int]) -> Samples:
        """Some of the samples, in the order of the indices."""
        chosen = list(indices)
        return Samples([self.names[i] for i in chosen], lambda at: self._read(chosen[at]))

    def sound(
        self,
        faults: Faults = "refuse",
        visit: Callable[[Sample], None] | None = None,
        progress: Callable[[Any], Any] = iter,
    ) -> tuple[Samples, list[str]]:
        """The samples without fault, and what is wrong with the others. Reads all of them once.

        Args:
            faults: Whether faulty samples are skipped, or refused when all have been read.
            visit: Called with each sample without fault, as all of them are in memory once.
            progress: Passes on what it is given, such as `tqdm`.

        Raises:
            AnnotationError: With "refuse", a sample is faulty; the message names all or the first
                ten. With either, no sample is left.
            ValueError: `faults` is another word.
        """
        _check_faults(faults)
        good, messages = [], []
        for index in progress(range(len(self))):
            try:
                sample = self[index]
            except AnnotationError as error:
                messages.append(str(error))
                continue
            good.append(index)
            if visit is not None:
                visit(sample)
        if messages and (faults == "refuse" or not good):
            raise AnnotationError(_summary(messages, len(self)))
        return self.take(good), messages


def without_faults(samples: Sequence[Sample], faults: Faults, found: list[str]) -> Iterator[Sample]:
    """The samples one by one; faulty ones are skipped and their faults added to `found`.

    Raises:
        AnnotationError: With "refuse", at the first fault.
        ValueError: `faults` is another word.
    """
    _check_faults(faults)
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except AnnotationError as error:
            if faults == "refuse":
                raise
            found.append(str(error))
            continue
        yield sample


def _check_faults(faults: str) -> None:
    if faults not in ("refuse", "skip"):
        raise ValueError(f'faults must be "refuse" or "skip", got {faults!r}.')


def _summary(messages: list[str], total: int) -> str:
    listed = "; ".join(messages[:_FAULTS_LISTED])
    more = len(messages) - _FAULTS_LISTED
    listed += f"; and {more} more" if more > 0 else ""
    return f"{len(messages)} of {total} samples are faulty: {listed}"


def _checked(sample: Sample) -> Sample:
    size = sample.image.shape[:2]
    masks = sample.masks
    if sample.image.dtype.kind == "f" and not np.isfinite(sample.image).all():
        raise ValueError("its image has pixels that are NaN or infinite")
    if masks.ndim != 3 or len(masks) == 0:
        raise ValueError("there is no object in its masks")
    if masks.shape[1:] != size:
        raise ValueError(
            f"a mask has {masks.shape[2]} x {masks.shape[1]} pixels, the image "
            f"{size[1]} x {size[0]}"
        )
    if sample.ignored is not None:
        masks = masks & ~sample.ignored
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise ValueError(f"mask {empty[0]} is empty (counted from 0)")
    return Sample(sample.name, sample.image, masks, sample.ignored)
