"""What crosses the engine's boundary: plain frozen dataclasses of NumPy arrays, and the engine's verbs.

Frames are RGB uint8. World and camera conventions are those of `mirage_model.camera`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

NOTHING, IMAGINED, OBSERVED = 0, 128, 255
"""Values of a visibility mask: what the memory holds at a pixel."""

DepthSource = Literal['sensor', 'perception', 'perception_unscaled']
"""Where a seed's depth came from; unscaled means that its metres are a guess."""


class InvalidRequest(ValueError):
    """The request cannot be served as it stands; the message says what is wrong and what would fit."""


class Cancelled(Exception):
    """The request was cancelled between two denoising steps."""


@dataclass(frozen=True, kw_only=True)
class Observation:
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
class ImagineRequest:
    """Imagine the frames that a camera sees along a path, starting from the last view of a memory.

    ``world_from_camera`` is (n, 4, 4) and ``times`` (n,), one for each frame to imagine, the view the path
    starts from left out. n must be a multiple of the model's new frames per chunk, else it is refused.
    The camera's K is that of the view it starts from, cropped and scaled to the model's frame.
    ``steps`` None takes the model's own count. With ``memory_frames`` every chunk also carries pictures of
    what the memory held, before the model was asked. ``keep_in`` names the memory that the imagined cells
    stay in: None throws them away when the request ends, the name of ``memory`` itself lets them stay there,
    another name makes that memory, or replaces it, by a fork of ``memory`` with what was imagined.
    """

    request_id: str
    world_from_camera: np.ndarray
    times: np.ndarray
    memory: str = 'default'
    seed: int = 0
    steps: int | None = None
    memory_frames: bool = False
    keep_in: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A path that a planner is thinking of: ``world_from_camera`` (n, 4, 4) and ``times`` (n,)."""

    world_from_camera: np.ndarray
    times: np.ndarray


@dataclass(frozen=True, kw_only=True)
class CandidatesRequest:
    """Imagine along several paths, each on a fork of one memory that is thrown away with the request.

    Every path is as in `ImagineRequest`; they may differ in length. ``seeds`` are one for each of them.
    ``batch`` candidates go through the model together; where the device has no memory for so many, half as
    many do. In batches of one a candidate's frames are bit for bit those that `ImagineRequest` gives for its path
    and seed; in larger ones they differ by rounding.

    ``last_frame_only``: of each candidate the last frame alone, or of an incomplete one the last that
    exists. ``resolution`` 'half' imagines frames of half the model's height and width: latents on half the
    grid, of cells that cover twice as much, K scaled with them. The memory is read on that grid and holds
    latents of smaller cells.
    It is refused where half the frame is no multiple of what the codec and the backbone need.

    ``deadline`` is in seconds after `EngineProtocol.imagine_candidates` was called: the chunk that is being
    denoised then is given up. ``goal`` is an image as that of `Observation`, cropped and scaled like one.
    """

    request_id: str
    trajectories: tuple[Trajectory, ...]
    seeds: tuple[int, ...]
    memory: str = 'default'
    steps: int | None = None
    batch: int = 1
    last_frame_only: bool = False
    resolution: Literal['full', 'half'] = 'full'
    deadline: float | None = None
    goal: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Imagined frames in the order of their times.

    ``frames`` (n, height, width, 3); ``visibility`` (n, height, width) of NOTHING, IMAGINED and OBSERVED;
    ``visible`` and ``observed`` (n,) are shares of the view in 0..1, observed being part of visible;
    ``memory_frames`` like ``frames`` or None. ``stages`` are the seconds that its parts took, by name.
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
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What was imagined along one of several paths.

    ``index`` is its place in the request. Its chunks are those of `ImagineRequest`, as far as they were made:
    ``complete`` says whether all were. ``goal_distance`` is the root of the mean square between the codec's
    latents of its last frame and of the goal, both normalised to unit deviation: 0 for the same picture,
    about 1.4 for two that have nothing in common; NaN where there is no goal or no frame.
    """

    index: int
    chunks: tuple[Chunk, ...]
    complete: bool
    goal_distance: float


@dataclass(frozen=True, kw_only=True)
class CoverageScore:
    """What a memory covers along a path of n poses, nothing generated.

    ``visible`` and ``observed`` (n,) are shares of the view in 0..1, observed being part of visible;
    ``age`` (n,) is the mean age of what is in view, in seconds, NaN where nothing is, ``mean_age`` that
    over all poses. ``visible_ends`` and ``observed_ends`` are the first pose at which the share is below
    the threshold that was asked for, None where it never is.
    """

    visible: np.ndarray
    observed: np.ndarray
    age: np.ndarray
    mean_age: float
    visible_ends: int | None
    observed_ends: int | None


@dataclass(frozen=True, kw_only=True)
class Points:
    """Cells of a memory to look at: places (m, 3) in metres, colours (m, 3) RGB uint8, observed (m,) bool.

    A colour is a linear map of the cell's latents, fitted to the codec: what it shows, roughly.
    """

    positions: np.ndarray
    colours: np.ndarray
    observed: np.ndarray


@dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """What a memory holds: its cells, and the bytes of them and of their directory."""

    cells: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
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
    """Owns memories and a model. Every verb raises InvalidRequest for what cannot be served, and stays usable.

    Memories have names. One is made by `seed` or `load`, or by `imagine` as ``keep_in`` says; to reset one
    is to `drop` it.
    """

    def describe(self) -> ModelInfo: ...

    def warm(self) -> None:
        """Bring the model onto its device and run all of it once, so that the first request is as fast
        as the tenth and `predicted_seconds` knows this machine. The memories stay as they were.
        """
        ...

    def release(self) -> None:
        """Give the device's memory back. Memories stay, and can be saved, loaded, moved and dropped;
        what needs the model is refused until `warm`.
        """
        ...

    def device_nbytes(self) -> int:
        """Bytes that this process holds on the device; 0 on the CPU."""
        ...

    def seed(self, view: Observation, *, memory: str = 'default') -> DepthSource:
        """Start a memory afresh from one view, and remember it as where imagination starts."""
        ...

    def observe(self, view: Observation, *, memory: str = 'default') -> DepthSource:
        """Add a view to a memory that exists; imagination starts from it from now on.

        What it sees through is removed; what was imagined gives way to it.
        """
        ...

    def imagine(
        self, request: ImagineRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        """Yield each chunk as soon as it exists. Raises Cancelled within one denoising step."""
        ...

    def imagine_candidates(
        self, request: CandidatesRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Candidate]:
        """Yield every candidate of the request once, in its order, as soon as its batch is done.

        After the deadline what exists is yielded at once, marked incomplete, with no chunk where none was
        made. Raises Cancelled within one denoising step; what was yielded before stays good.
        """
        ...

    def predicted_seconds(self, request: ImagineRequest | CandidatesRequest) -> float:
        """How long a request would take from now on if nothing else ran, from what chunks took so far.

        A deadline is not looked at. Refused before `warm`, or any request, has measured a chunk.
        """
        ...

    def score(
        self,
        trajectories: Sequence[Trajectory],
        *,
        memory: str = 'default',
        threshold: float = 0.5,
        coarse: bool = False,
    ) -> list[CoverageScore]:
        """What the memory covers along each of the paths, in their order.

        Exact, it is what chunks of these cameras would carry before anything is imagined. ``coarse``
        estimates it from groups of cells, for many candidates at once: `memory.coverage` says how well.
        """
        ...

    def reanchor(self, new_from_old: np.ndarray, *, memory: str = 'default') -> None:
        """Move all of a memory by a rigid transform (4, 4), after its world frame has jumped."""
        ...

    def points(self, *, memory: str = 'default', most: int = 100_000) -> Points:
        """Up to ``most`` of a memory's cells, spread evenly over all of them."""
        ...

    def holdings(self, *, memory: str = 'default') -> MemoryStats: ...

    def save(self, path: Path, *, memory: str = 'default') -> None: ...

    def load(self, path: Path, *, memory: str = 'default') -> None: ...

    def drop(self, *, memory: str = 'default') -> None:
        """Forget a memory; dropping one that does not exist is no error."""
        ...
