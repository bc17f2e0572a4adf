"""Imagine along a recording and compare with its frames.

The memory observes the recorded frames up to a moment. The poses that were driven next are
imagined, and each imagined frame is compared with the frame recorded there. Each segment is saved
once it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
import json
import math
from pathlib import Path
import time
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float64, Int, UInt8
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
import torch

from mirage_model.camera import concatenate
from mirage_model.clip import Clip
from mirage_model.data.bag import Bag
from mirage_model.data.sources import Part
from mirage_model.engine.inputs import fit_observation
from mirage_model.evaluation.baselines import warp_observation
from mirage_model.evaluation.config import ReplayConfig
from mirage_model.evaluation.image_quality import quality
from mirage_model.evaluation.replay.geometry import METRICS, geometry
from mirage_model.evaluation.replay.segments import Segment
from mirage_model.image_fit import fit_image
from mirage_model.interface import (
    NOTHING,
    Chunk,
    DepthSource,
    ImagineRequest,
    InvalidRequest,
    ModelInfo,
    Observation,
    Trajectory,
)
from mirage_model.io import as_json, written_whole

MEMORY = 'replay'
WARP_METRICS = ('warp_psnr_all', 'warp_ssim_all', 'better_than_warp')
"""Metrics of the last observed frame, warped and inpainted; the last is 1 where the imagined frame
has the higher PSNR, else 0."""


@runtime_checkable
class ReplayEngine(Protocol):
    """The part of `EngineProtocol` that a replay needs; a running node provides it too."""

    def describe(self) -> ModelInfo: ...

    def seed(self, view: Observation, *, memory: str = 'default') -> DepthSource: ...

    def observe(self, view: Observation, *, memory: str = 'default') -> DepthSource: ...

    def imagine(self, request: ImagineRequest) -> Iterator[Chunk]: ...


@dataclass(frozen=True, kw_only=True)
class SegmentResult:
    """A segment imagined with one seed, the recorded frames, and metrics.

    Attributes:
        start: Stamp of the frame that imagination starts from [ns].
        nanoseconds: Stamps of the recorded frames [ns].
        warp: The last observed frame, warped by its depth and inpainted; None without depth.
        rows: Metrics of each frame.
        seconds: Times of observing ('observing') and of each chunk ('chunks') [s].
        rejected: Why observations were rejected.
        unreadable: Why frames could not be read from the bag.
        refinement: Outcome of the re-estimation of cameras, as `Chunk.refinement`.
    """

    index: int
    seed: int
    start: int
    frames: UInt8[np.ndarray, 'n h w 3']
    recorded: UInt8[np.ndarray, 'n h w 3']
    visibility: UInt8[np.ndarray, 'n h w']
    nanoseconds: Int[np.ndarray, 'n']
    K: Float64[np.ndarray, '3 3']
    world_from_camera: Float64[np.ndarray, 'n 4 4']
    rows: tuple[dict[str, Any], ...]
    seconds: dict[str, Any]
    rejected: tuple[str, ...]
    depth_source: str
    warp: UInt8[np.ndarray, 'n h w 3'] | None = None
    unreadable: tuple[str, ...] = ()
    refinement: tuple[str, ...] = ()


class ObservedMemory:
    """A memory that has observed the frames before a segment.

    It continues from the segment before where that observed a prefix of the same frames, and is
    reset otherwise.
    """

    def __init__(self, engine: ReplayEngine, bag: Bag):
        self._engine, self._bag = engine, bag
        self._reset()

    def advance_to(self, segment: Segment) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
        """Observe the frames that are missing.

        Returns:
            The time that it took [s], why observations were rejected, and why frames could not be
            read, since the last reset.

        Raises:
            ValueError: The last frame, which imagination starts from, is one of those.
        """
        count = len(self._observed)
        if self._observed != segment.observed[:count]:
            self._reset()
            count = 0
        seconds, started = 0.0, len(self._rejected) + len(self._unreadable) < count
        for row in segment.observed[count:]:
            try:
                (view,) = views(self._bag, [row])
                began = time.monotonic()
                (self._engine.observe if started else self._engine.seed)(view, memory=MEMORY)
                seconds += time.monotonic() - began
                started = True
            except ValueError as error:
                if row == segment.observed[-1]:
                    self._reset()
                    raise ValueError(f'segment {segment.index}: cannot start: {error}') from None
                rejected = isinstance(error, InvalidRequest)
                (self._rejected if rejected else self._unreadable).append(str(error))
            self._observed += (row,)
        return seconds, tuple(self._rejected), tuple(self._unreadable)

    def _reset(self) -> None:
        self._observed: tuple[int, ...] = ()
        self._rejected: list[str] = []
        self._unreadable: list[str] = []


def views(bag: Bag, rows: Sequence[int]) -> list[Observation]:
    """Return recorded frames as observations, at the size of the recording."""
    clip = _clip(bag, rows)
    depth = clip.depth.numpy() if bag.config.depth else [None] * len(rows)
    return [
        Observation(
            image=frame,
            K=bag.K_of_images[row],
            world_from_camera=bag.world_from_camera[row],
            time=whole_microseconds(float(bag.stamps[row])),
            depth=metres,
        )
        for row, frame, metres in zip(rows, clip.frames.numpy(), depth)
    ]


def request_for(
    bag: Bag, segment: Segment, about: ModelInfo, config: ReplayConfig, seed: int
) -> ImagineRequest:
    """Make the request for a segment: the recorded poses at the model's frame rate, padded to
    whole chunks.

    The first frame's time is rounded as a message rounds it, since the node counts from there.
    """
    rows = list(segment.future)
    first = whole_microseconds(float(bag.stamps[segment.observed[-1]])) + 1 / about.frame_rate
    recorded = Trajectory(
        world_from_camera=bag.world_from_camera[rows],
        times=whole_microseconds(first) + np.arange(len(rows)) / about.frame_rate,
    )
    padded = recorded.padded(about)
    return ImagineRequest(
        request_id=f'segment-{segment.index:05d}-{seed}',
        world_from_camera=padded.world_from_camera,
        times=padded.times,
        memory=MEMORY,
        seed=seed,
        steps=config.steps or None,
        prompt=config.prompt,
        negative_prompt=config.negative_prompt,
        guidance=config.guidance,
    )


def whole_microseconds(seconds: float) -> float:
    """Round a time as the node's messages do [s]."""
    return round(seconds * 1e6) / 1e6


def replay_segment(
    engine: ReplayEngine,
    bag: Bag,
    memory: ObservedMemory,
    segment: Segment,
    config: ReplayConfig,
    seed: int,
) -> SegmentResult:
    """Imagine one segment and measure it. Raises ValueError, with the segment or the topic."""
    about = engine.describe()
    seen = views(bag, (segment.observed[-1], *segment.future))
    start, *true = [fit_image(view.image, about.height, about.width) for view in seen]
    observing, rejected, unreadable = memory.advance_to(segment)
    try:
        chunks = list(engine.imagine(request_for(bag, segment, about, config, seed)))
    except InvalidRequest as error:
        raise ValueError(f'segment {segment.index}: {error}') from None
    count = len(segment.future)
    frames = np.concatenate([chunk.frames for chunk in chunks])[:count]
    visibility = np.concatenate([chunk.visibility for chunk in chunks])[:count]
    visible = np.concatenate([chunk.visible for chunk in chunks])[:count]
    observed = np.concatenate([chunk.observed for chunk in chunks])[:count]
    recorded = np.stack(true)
    measured = quality(frames, recorded, visibility != NOTHING)
    last_frame = np.broadcast_to(start, recorded.shape).copy()
    last_quality = quality(last_frame, recorded, visibility != NOTHING)
    warp = warp_observation(seen, about.height, about.width)
    against_warp = _against_warp(warp, recorded, visibility, [row['psnr_all'] for row in measured])
    placed = _geometry(frames, recorded, seen[1:], about)
    stamps = bag.stamps[list(segment.future)]
    rows = tuple(
        {
            'segment': segment.index,
            'seed': seed,
            'frame': number + 1,
            'nanoseconds': int(bag.nanoseconds[row]),
            'horizon_s': float(stamps[number] - bag.stamps[segment.observed[-1]]),
            'visible': float(visible[number]),
            'observed': float(observed[number]),
            **measured[number],
            **placed[number],
            'last_frame_psnr_all': last_quality[number]['psnr_all'],
            'last_frame_ssim_all': last_quality[number]['ssim_all'],
            **against_warp[number],
        }
        for number, row in enumerate(segment.future)
    )
    return SegmentResult(
        index=segment.index,
        seed=seed,
        start=int(bag.nanoseconds[segment.observed[-1]]),
        frames=frames,
        recorded=recorded,
        visibility=visibility,
        warp=warp,
        nanoseconds=bag.nanoseconds[list(segment.future)],
        K=np.array(chunks[0].K, np.float64).reshape(-1, 3, 3)[0],
        world_from_camera=bag.world_from_camera[list(segment.future)],
        rows=rows,
        seconds={'observing': observing, 'chunks': [float(chunk.seconds) for chunk in chunks]},
        rejected=rejected,
        depth_source=chunks[0].depth_source,
        unreadable=unreadable,
        refinement=tuple(reason for chunk in chunks for reason in chunk.refinement),
    )


def _against_warp(
    warp: UInt8[np.ndarray, 'n h w 3'] | None,
    recorded: UInt8[np.ndarray, 'n h w 3'],
    visibility: UInt8[np.ndarray, 'n h w'],
    imagined_psnr: list[float],
) -> list[dict[str, float]]:
    """Return `WARP_METRICS` of each frame, NaN without a warp."""
    if warp is None:
        return [dict.fromkeys(WARP_METRICS, math.nan) for _ in recorded]
    rows = quality(warp, recorded, visibility != NOTHING)
    return [
        {
            'warp_psnr_all': row['psnr_all'],
            'warp_ssim_all': row['ssim_all'],
            'better_than_warp': float(psnr_all > row['psnr_all']),
        }
        for row, psnr_all in zip(rows, imagined_psnr)
    ]


def _geometry(
    frames: UInt8[np.ndarray, 'n h w 3'],
    recorded: UInt8[np.ndarray, 'n h w 3'],
    seen: list[Observation],
    about: ModelInfo,
) -> list[dict[str, float]]:
    """Return `geometry.METRICS` of each frame, NaN without recorded depth."""
    if all(view.depth is None for view in seen):
        return [dict.fromkeys(METRICS, math.nan) for _ in frames]
    size = about.height, about.width
    cameras = [fit_observation(replace(view, depth=None), *size).camera for view in seen]
    depth = []
    for view in seen:
        nothing = torch.full((1, *size), math.nan)
        try:
            fitted = fit_observation(view, *size).depth
        except InvalidRequest:  # no pixel has a depth
            fitted = None
        depth.append(nothing if fitted is None else fitted)
    imagined, true = (
        torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255 for part in (frames, recorded)
    )
    return geometry(imagined, true, torch.cat(depth), concatenate(cameras))


def replay(
    engine: ReplayEngine,
    bag: Bag,
    segments: Sequence[Segment],
    config: ReplayConfig,
    folder: Path,
    done: Callable[[], None] = lambda: None,
) -> list[str]:
    """Replay the segments whose files are missing from ``folder``; return why some failed.

    ``done`` is called after each segment.
    """
    memory, failures = ObservedMemory(engine, bag), []
    for segment in segments:
        for seed in config.seeds:
            path = folder / f'{segment.index:05d}-{seed}.safetensors'
            if not path.exists():
                try:
                    save(path, replay_segment(engine, bag, memory, segment, config, seed))
                except ValueError as error:
                    failures.append(str(error))
            done()
    return failures


def save(path: Path, result: SegmentResult) -> None:
    """Write a segment; the file is whole or absent."""
    values = {name: getattr(result, name) for name in SegmentResult.__dataclass_fields__}
    tensors = {k: np.ascontiguousarray(v) for k, v in values.items() if isinstance(v, np.ndarray)}
    rest = {name: value for name, value in values.items() if name not in tensors}
    with written_whole(path) as part:
        save_file(tensors, part, metadata={'replayed': as_json(rest, indent=None)})


def load(path: Path) -> SegmentResult:
    """Read a segment."""
    with safe_open(path, framework='np') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        rest = json.loads(file.metadata()['replayed'])
    rest |= {name: tuple(rest.get(name, ())) for name in ('rejected', 'unreadable', 'refinement')}
    rest['rows'] = tuple(
        {name: math.nan if value is None else value for name, value in row.items()}
        for row in rest['rows']
    )
    return SegmentResult(**tensors, **rest)


def run_description(bag: Bag, engine: ReplayEngine, config: ReplayConfig, *, way: str) -> dict:
    """Return what the metrics depend on, for `begin_run`. Devices do not count."""
    description = engine.describe()
    settings = {k: v for k, v in asdict(config).items() if k != 'devices'}
    files = sorted(path for path in bag.path.rglob('*') if path.is_file()) or [bag.path]
    return {
        'format': 3,
        'bag': bag.scene,
        'bytes': sum(path.stat().st_size for path in files),
        'way': way,
        'model': description.model,
        'sha256': description.sha256,
        'frame': [description.height, description.width],
        'frame_rate': description.frame_rate,
        'replay': settings,
        'topics': asdict(bag.config),
    }


def _clip(bag: Bag, rows: Sequence[int]) -> Clip:
    name = f'{bag.scene}-{rows[0]:05d}'
    return bag.recorded.load(
        Part(name=name, scene=bag.scene, sequence=bag.scene, rows=tuple(rows))
    )
