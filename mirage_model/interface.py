"""What crosses the engine's boundary: plain frozen dataclasses of NumPy arrays, and the engine's verbs.

Frames are RGB uint8. World and camera conventions are those of `mirage_model.camera`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

NOTHING, IMAGINED, OBSERVED = 0, 128, 255
"""Values of a visibility mask: what the memory holds at a pixel."""

DepthSource = Literal['sensor', 'perception', 'perception_unscaled']
"""Where a seed's depth came from; unscaled means that its metres are a guess."""


class Refused(ValueError):
    """The request cannot be served as it stands; the message says what is wrong and what would fit."""


class Cancelled(Exception):
    """The request was cancelled between two denoising steps."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A frame that a sensor saw, with its camera and, where there was a depth sensor, its depth.

    ``image`` is (height, width, 3) at any size: the engine crops and scales it to the model's.
    ``depth`` is (height, width) float32 in metres, registered to ``image``; not finite or <= 0 is invalid.
    """

    image: np.ndarray
    K: np.ndarray
    world_from_camera: np.ndarray
    time: float
    depth: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Imagine:
    """Imagine the frames that a camera sees along a path, starting from the last view of a memory.

    ``world_from_camera`` is (n, 4, 4) and ``times`` (n,), one for each frame to imagine, the view the path
    starts from left out. n must be a multiple of the model's new frames per chunk, else it is refused.
    The camera's K is that of the view it starts from, cropped and scaled to the model's frame.
    ``steps`` None takes the model's own count. With ``memory_frames`` every chunk also carries pictures of
    what the memory held, before the model was asked. With ``keep`` the imagined cells stay in the memory.
    """

    request_id: str
    world_from_camera: np.ndarray
    times: np.ndarray
    memory: str = 'default'
    seed: int = 0
    steps: int | None = None
    memory_frames: bool = False
    keep: bool = False


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Imagined frames in the order of their times.

    ``frames`` (n, height, width, 3); ``visibility`` (n, height, width) of NOTHING, IMAGINED and OBSERVED;
    ``visible`` and ``observed`` (n,) are shares of the view in 0..1, observed being part of visible;
    ``memory_frames`` like ``frames`` or None.
    """

    request_id: str
    index: int
    count: int
    frames: np.ndarray
    visibility: np.ndarray
    visible: np.ndarray
    observed: np.ndarray
    K: np.ndarray
    world_from_camera: np.ndarray
    times: np.ndarray
    memory_frames: np.ndarray | None
    depth_source: DepthSource
    model: str
    seed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a memory covers along a path, nothing generated: all (n,), ages in seconds, NaN where unseen."""

    visible: np.ndarray
    observed: np.ndarray
    age: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a client must know of an engine to ask well."""

    model: str
    sha256: str
    height: int
    width: int
    frame_rate: float
    new_frames_per_chunk: int
    steps: int


@runtime_checkable
class EngineProtocol(Protocol):
    """Owns memories and a model. Every verb raises Refused for what cannot be served, and stays usable."""

    def describe(self) -> Description: ...

    def seed(self, view: View, *, memory: str = 'default') -> DepthSource:
        """Start a memory afresh from one view, and remember it as where imagination starts."""
        ...

    def observe(self, view: View, *, memory: str = 'default') -> DepthSource:
        """Add a view to a memory that exists; imagination starts from it from now on."""
        ...

    def imagine(
        self, request: Imagine, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        """Yield each chunk as soon as it exists. Raises Cancelled within one denoising step."""
        ...

    def score(
        self, world_from_camera: np.ndarray, times: np.ndarray, *, memory: str = 'default'
    ) -> Score: ...

    def save(self, path: Path, *, memory: str = 'default') -> None: ...

    def load(self, path: Path, *, memory: str = 'default') -> None: ...

    def drop(self, *, memory: str = 'default') -> None: ...
