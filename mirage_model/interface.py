"""Requests and answers of the engine: frozen dataclasses of NumPy arrays, and the engine's verbs.

Frames are RGB uint8. Conventions of worlds and cameras are those of `mirage_model.camera`: optical
camera frames, metres, K in pixels with the centre of the top-left pixel at (0, 0). Times are
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

NOTHING, IMAGINED, OBSERVED = 0, 128, 255
"""Values of a visibility mask: what the memory holds at a pixel."""

DepthSource = Literal['sensor', 'perception', 'perception_unscaled']
"""Source of a memory's depth; with 'perception_unscaled' the metres are the network's guess."""


class InvalidRequest(ValueError):
    """The request cannot be served; the message names the value and what is allowed."""


class Cancelled(Exception):
    """The request was cancelled between two denoising steps."""


class EngineUnavailable(ConnectionError):
    """An engine on another machine cannot be reached, or has lost what it had of this client."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A frame from a sensor, with its camera."""

    image: np.ndarray
    """(height, width, 3) uint8 of any size; the engine crops and scales it to the model's."""
    K: np.ndarray
    """(3, 3) intrinsics of ``image`` [px]."""
    world_from_camera: np.ndarray
    """(4, 4) pose of the camera [m]."""
    time: float
    """Time of exposure [s]."""
    depth: np.ndarray | None = None
    """(height, width) float32 depth registered to ``image`` [m]; not finite or <= 0 is invalid.

    None lets the model's perception estimate it.
    """


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Fields of both `ImagineRequest` and `CandidatesRequest`."""

    request_id: str
    """Copied into each chunk."""
    memory: str = 'default'
    """Name of the memory to start from."""
    steps: int | None = None
    """Denoising steps of a chunk, 1 to 1000; None takes the model's default."""
    prompt: str = ''
    """Text that describes the frames; empty takes the model's own text."""
    negative_prompt: str = ''
    """Text that describes what guidance leads away from."""
    guidance: float = 1.0
    """Weight of classifier-free guidance, 1 to 100; 1 is none, more doubles the time of a step."""
    K: np.ndarray | None = None
    """(3, 3) intrinsics of the frames at the model's full size [px].

    None takes those of the last observation, cropped and scaled to the model's frame.
    """


@dataclass(frozen=True, kw_only=True)
class ImagineRequest(GenerationRequest):
    """Imagine the frames along a path that starts from the last observation of a memory."""

    world_from_camera: np.ndarray
    """(n, 4, 4) pose of each frame to imagine, without the observation that the path starts from
    [m].

    n must be a multiple of `ModelInfo.new_frames_per_chunk`.
    """
    times: np.ndarray
    """(n,) time of each frame, increasing [s]."""
    seed: int = 0
    """Seed of the noise."""
    memory_frames: bool = False
    """Whether chunks carry `Chunk.memory_frames`."""
    keep_in: str | None = None
    """Name of the memory that keeps the imagined points.

    None discards them. The name in ``memory`` writes them there. Another name creates or replaces
    that memory: a fork of ``memory`` with the imagined points.
    """


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A planned path."""

    world_from_camera: np.ndarray
    """(n, 4, 4) poses of the camera [m]."""
    times: np.ndarray
    """(n,) times of the poses, increasing [s]."""

    def padded(self, about: ModelInfo) -> Trajectory:
        """Return the path extended to whole chunks at the frame rate, holding the last camera."""
        count = -len(self.times) % about.new_frames_per_chunk
        held = self.world_from_camera[-1:].repeat(count, axis=0)
        later = self.times[-1] + np.arange(1, count + 1) / about.frame_rate
        return Trajectory(
            world_from_camera=np.concatenate([self.world_from_camera, held]),
            times=np.concatenate([self.times, later]),
        )


@dataclass(frozen=True, kw_only=True)
class CandidatesRequest(GenerationRequest):
    """Imagine along several paths, each on a fork of one memory; the forks are discarded."""

    trajectories: tuple[Trajectory, ...]
    """The candidates' paths; each follows the rules of `ImagineRequest`, lengths may differ."""
    seeds: tuple[int, ...]
    """Seed of the noise for each candidate."""
    batch: int = 1
    """Candidates that are denoised together; halved when the device runs out of memory.

    With 1 the frames equal those of an `ImagineRequest` bit for bit; more differ by rounding.
    """
    resolution: Literal['full', 'half'] = 'full'
    """Size of the frames relative to the model's; 'half' reads the memory on half the latent grid.

    Rejected where half the frame does not fit the codec and the backbone.
    """
    deadline: float | None = None
    """Seconds after the call at which candidates are returned as far as they exist; None waits."""
    goal: np.ndarray | None = None
    """(height, width, 3) uint8 image for `Candidate.goal_distance`, cropped and scaled to the
    frame."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Imagined frames in the order of their times."""

    request_id: str
    """Copied from the request."""
    index: int
    """Number of the chunk along the path, from 0."""
    count: int
    """Number of chunks of the path."""
    frames: np.ndarray
    """(n, height, width, 3) uint8."""
    visibility: np.ndarray
    """(n, height, width) uint8 of NOTHING, IMAGINED and OBSERVED, before the chunk was imagined.
    """
    visible: np.ndarray
    """(n,) share of the view that the memory covers, in 0..1."""
    observed: np.ndarray
    """(n,) share of the view that rests on observations, in 0..1; part of ``visible``."""
    K: np.ndarray
    """(3, 3) intrinsics of all frames [px]."""
    world_from_camera: np.ndarray
    """(n, 4, 4) pose of each frame [m]."""
    times: np.ndarray
    """(n,) time of each frame [s]."""
    memory_frames: np.ndarray | None
    """The memory's latents decoded without the model, shaped like ``frames``; grey where it is
    empty."""
    depth_source: DepthSource
    """Source of the memory's depth."""
    model: str
    """Name of the model."""
    seed: int
    """Seed of the noise."""
    seconds: float
    """Time that the chunk took [s]."""
    prompt: str = ''
    """Prompt of the request."""
    observation_time: float = 0.0
    """Time of the newest observation in the memory when the request began [s]; 0 if unknown."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Time of each stage [s]: read, denoise, decode, and write of the chunk before."""
    refinement: tuple[str, ...] = ()
    """For each latent frame of the chunk before: why it keeps its planned camera, or '' where its
    camera was found.

    Empty where cameras are not re-estimated.
    """

    def select(self, frames: slice) -> Chunk:
        """Return the chunk with some of its frames."""
        per_frame = ('frames', 'visibility', 'visible', 'observed', 'world_from_camera', 'times')
        selected = {name: getattr(self, name)[frames] for name in per_frame}
        if self.memory_frames is not None:
            selected['memory_frames'] = self.memory_frames[frames]
        if self.K.ndim == 3:
            selected['K'] = self.K[frames]
        return replace(self, **selected)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The imagined frames along one path of a `CandidatesRequest`."""

    index: int
    """Position of the path in the request."""
    chunks: tuple[Chunk, ...]
    """The chunks that were imagined before the deadline, as those of an `ImagineRequest`."""
    complete: bool
    """Whether all chunks of the path exist."""
    goal_distance: float
    """Root mean square difference of the normalised latents of the last frame and the goal.

    0 for equal images, about 1.4 for unrelated ones; NaN without a goal or without frames.
    """


@dataclass(frozen=True, kw_only=True)
class CoverageScore:
    """Coverage of a path of n poses by a memory, without generating frames."""

    visible: np.ndarray
    """(n,) share of the view that the memory covers, in 0..1."""
    observed: np.ndarray
    """(n,) share of the view that rests on observations, in 0..1; part of ``visible``."""
    age: np.ndarray
    """(n,) mean age of what is in view [s]; NaN where nothing is."""
    mean_age: float
    """Mean age over all poses, weighted by ``visible`` [s]; NaN where nothing is in view."""
    visible_ends: int | None
    """First pose at which ``visible`` is below the threshold; None if there is none."""
    observed_ends: int | None
    """First pose at which ``observed`` is below the threshold; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points of a memory, for display."""

    positions: np.ndarray
    """(m, 3) float32 positions in the world [m]."""
    colours: np.ndarray
    """(m, 3) RGB uint8, a linear map of the latents fitted to the codec: approximate."""
    observed: np.ndarray
    """(m,) bool; False where the point was imagined."""


@dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """Size of a memory."""

    points: int
    """Number of points."""
    nbytes: int
    """Bytes of the points and of their index."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The model's properties that a client needs to build requests."""

    model: str
    """Name of the model."""

    sha256: str
    """Hash over all weights."""
    height: int
    """Height of the frames [px]."""
    width: int
    """Width of the frames [px]."""
    frame_rate: float
    """Frames per second that the model was trained at."""
    new_frames_per_chunk: int
    """Frames that a chunk adds to a path."""
    steps: int
    """Default number of denoising steps."""
    segments_dynamic: bool = True
    """Whether dynamic objects are kept out of the memory; otherwise each passer-by enters it."""
    prompts: bool = False
    """Whether the model has a text encoder, so that requests may bring any prompt."""


@dataclass(frozen=True, kw_only=True)
class LinkStatus:
    """State of the link to an engine on another machine."""

    address: str
    """Address of the engine."""
    connected: bool
    """Whether the engine answers."""
    message: str = ''
    """Fault of the link, or what was lost with the last session; empty if nothing."""
    round_trip: float = float('nan')
    """Time of the last heartbeat [s]."""
    reconnects: int = 0
    """Number of times that the link was made again."""
    sessions_lost: int = 0
    """Number of times that the engine had lost the memories of this client."""
    observations_kept: int = 0
    """Observations that would be sent again."""
    nbytes_kept: int = 0
    """Bytes of these observations."""


@runtime_checkable
class EngineProtocol(Protocol):
    """A model and named memories.

    `seed`, `load`, and `imagine` with ``keep_in``, create memories; `drop` removes them. Any verb
    raises InvalidRequest for a memory that does not exist and for any other request that it cannot
    serve, and leaves the engine and its memories usable.
    """

    def describe(self) -> ModelInfo: ...

    def warm(self) -> None:
        """Move the model to its device and run all of it once; memories stay unchanged.

        After it the first request is as fast as later ones, and `predicted_seconds` has timings.
        """
        ...

    def release(self) -> None:
        """Free the device's memory.

        Memories stay and can be scored, saved, loaded, reanchored and dropped. `seed`, `observe`,
        `imagine` and `imagine_candidates` raise InvalidRequest until `warm`.
        """
        ...

    def device_nbytes(self) -> int:
        """Return the bytes that this process holds on the device; 0 on the CPU."""
        ...

    def seed(self, observation: Observation, *, memory: str = 'default') -> DepthSource:
        """Create or replace a memory from one observation, which becomes the start of paths.

        Raises:
            InvalidRequest: An array is malformed, the depth has no valid pixel, or there is no
                depth and unscaled depth is not allowed. The old memory stays.
        """
        ...

    def observe(self, observation: Observation, *, memory: str = 'default') -> DepthSource:
        """Write an observation into a memory; it becomes the start of paths.

        Points that the observation sees through are removed, imagined points give way to it.

        Raises:
            InvalidRequest: As `seed`.
        """
        ...

    def imagine(
        self, request: ImagineRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        """Yield the chunks of a path, each as soon as it exists.

        Raises:
            InvalidRequest: The path is malformed.
            Cancelled: ``cancelled()`` returned true; it is polled before each denoising step.
        """
        ...

    def imagine_candidates(
        self, request: CandidatesRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Candidate]:
        """Yield the candidates in order, each as soon as its batch is done.

        After the deadline the remaining candidates are yielded at once with the chunks that exist.

        Raises:
            InvalidRequest: A value of the request is not allowed.
            Cancelled: ``cancelled()`` returned true; it is polled before each denoising step.
        """
        ...

    def predicted_seconds(self, request: ImagineRequest | CandidatesRequest) -> float:
        """Return how long a request would take from the times of earlier chunks; ignore its
        deadline.

        Raises:
            InvalidRequest: No chunk was timed yet.
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
        """Return the coverage of each path by the memory.

        Args:
            threshold: Share of the view for `CoverageScore.visible_ends` and ``observed_ends``.
            coarse: Estimate from groups of points, for many paths; see
                `mirage_model.memory.coverage`. Otherwise the values equal those of chunks along
                the paths.

        Raises:
            InvalidRequest: A path is malformed.
        """
        ...

    def reanchor(self, new_from_old: np.ndarray, *, memory: str = 'default') -> None:
        """Transform a memory rigidly, after its world frame jumped.

        Args:
            new_from_old: (4, 4), from the old world frame to the new one [m].

        Raises:
            InvalidRequest: The transform is not rigid.
        """
        ...

    def points(self, *, memory: str = 'default', max_points: int = 100_000) -> Points:
        """Return up to ``max_points`` points of a memory, sampled evenly.

        Raises:
            InvalidRequest: The memory is of a kind without latent points.
        """
        ...

    def stats(self, *, memory: str = 'default') -> MemoryStats:
        """Return the size of a memory."""
        ...

    def save(self, path: Path, *, memory: str = 'default') -> None:
        """Write a memory and the start of its paths to a safetensors file, whole or not at all.

        Raises:
            InvalidRequest: The memory is of a kind that cannot be saved.
            OSError: The file cannot be written.
        """
        ...

    def load(self, path: Path, *, memory: str = 'default') -> None:
        """Create or replace a memory from a file that `save` wrote.

        Raises:
            InvalidRequest: The file is missing, damaged or of another model. The old memory stays.
        """
        ...

    def drop(self, *, memory: str = 'default') -> None:
        """Delete a memory, if it exists."""
        ...

    def link(self) -> LinkStatus | None:
        """Return the state of the link to the engine; None if it is in this process.

        It may be called from any thread, and returns at once.
        """
        ...

    def close(self) -> None:
        """Delete the memories and end the link, if there is one. Call nothing after it."""
        ...
