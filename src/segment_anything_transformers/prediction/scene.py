"""What a predictor looks at, and who made it look there.

A predictor has one current image. Where several threads, or several tasks of an event loop, set
images of their own, one would get masks of another's image without noticing. So each remembers
what it made a predictor look at last: if that is not what the predictor looks at now, asking is
refused. Who has set nothing may ask about whatever is set: one image that many threads ask about
is fine, and so is one that a request to a server sets and a later one asks about.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from itertools import count
from typing import NamedTuple

import numpy as np

from .encoded_image import EncodedImage
from .zoom import Region


class Scene(NamedTuple):
    """An image, and the part of it that prompts are answered from. It never changes."""

    whole: EncodedImage
    seen: EncodedImage
    """All of the image, or the part that it is zoomed to."""
    region: Region | None = None
    """The part; None for all of the image."""

    @property
    def pixels(self) -> np.ndarray | None:
        """The image (H0, W0, C), unless only its embedding is known."""
        return self.whole.pixels

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width (H0, W0) of the image."""
        return self.whole.resizer.src_size

    @property
    def part(self) -> Region:
        """The part that is seen, all of the image if it is not zoomed."""
        return self.region or Region.whole(self.size_hw)


_NUMBERS = count()
_Looks = tuple[tuple[weakref.ref, int], ...]
_LOOKS: ContextVar[_Looks] = ContextVar("_LOOKS", default=())
"""Of this thread or task: predictors, and the scene that it last made each look at, by number."""


class Sight:
    """What one predictor looks at; shared by threads."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._now: tuple[int, Scene | None] = (next(_NUMBERS), None)

    def look_at(self, scene: Scene | None) -> None:
        """Looks at a scene, or at nothing."""
        number = next(_NUMBERS)
        self._now = number, scene
        others = tuple(look for look in _LOOKS.get() if look[0]() not in (None, self))
        _LOOKS.set(others if scene is None else (*others, (weakref.ref(self), number)))

    @property
    def scene(self) -> Scene | None:
        """What is looked at.

        Raises:
            RuntimeError: Another thread or task has changed it since this one did.
        """
        number, scene = self._now
        for predictor, last in _LOOKS.get():
            if predictor() is self and last != number:
                raise RuntimeError(
                    "Another thread or task has set or cleared this predictor's image since this "
                    "one set its own, so that masks would be of another image. A predictor has one "
                    "current image: make a SAMPredictor for each thread. That costs nothing, they "
                    "share the model."
                )
        return scene
