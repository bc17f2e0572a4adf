"""Replay a recorded drive: what would have been imagined there, beside what the camera then saw.

The memory observes the recorded frames up to a moment; the poses that were driven next are imagined, and
each imagined frame is compared with the one recorded there. Every segment is kept as soon as it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
import json
import math
from pathlib import Path
import time
from typing import Protocol, runtime_checkable

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
from mirage_model.evaluation.config import ReplayConfig
from mirage_model.evaluation.metrics import quality
from mirage_model.evaluation.replay.geometry import FIGURES, geometry
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
)
from mirage_model.io import as_json, written_whole

MEMORY = 'replay'


@runtime_checkable
class Imaginer(Protocol):
    """The verbs of `EngineProtocol` that a replay needs: an engine here, or a node that has one."""

    def describe(self) -> ModelInfo: ...

    def seed(self, view: Observation, *, memory: str = 'default') -> DepthSource: ...

    def observe(self, view: Observation, *, memory: str = 'default') -> DepthSource: ...

    def imagine(self, request: ImagineRequest) -> Iterator[Chunk]: ...


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A segment imagined with one seed, beside what was recorded.

    ``nanoseconds`` are the recorded stamps. ``rows`` hold the figures of every frame; ``seconds`` is what
    observing and each chunk took. Of the views before, ``refused`` says why some were not taken, and
    ``unreadable`` why the bag could not give others.
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
    rows: tuple[dict[str, float | int], ...]
    seconds: dict[str, float | list[float]]
    refused: tuple[str, ...]
    depth_source: str
    unreadable: tuple[str, ...] = ()


class Walk:
    """A memory that is brought to where each segment starts: on from the one before where that is possible."""

    def __init__(self, engine: Imaginer, bag: Bag):
        self._engine, self._bag = engine, bag
        self._forget()

    def to(self, segment: Segment) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
        """Observe; return the seconds that it took, and why views were refused, or could not be read.

        Raises ValueError if the view that imagination must start from is one of those.
        """
        known = len(self._seen)
        if self._seen != segment.observed[:known]:
            self._forget()
            known = 0
        lost = len(self._refused) + len(self._unreadable)
        seconds, started = 0.0, lost < known
        for row in segment.observed[known:]:
            try:
                (view,) = views(self._bag, [row])
                began = time.monotonic()
                (self._engine.observe if started else self._engine.seed)(view, memory=MEMORY)
                seconds += time.monotonic() - began
                started = True
            except ValueError as error:  # Refused, or of the bag
                if row == segment.observed[-1]:
                    self._forget()
                    raise ValueError(f'segment {segment.index} cannot start: {error}') from None
                lost = self._refused if isinstance(error, InvalidRequest) else self._unreadable
                lost.append(str(error))
            self._seen += (row,)
        return seconds, tuple(self._refused), tuple(self._unreadable)

    def _forget(self) -> None:
        self._seen: tuple[int, ...] = ()
        self._refused: list[str] = []
        self._unreadable: list[str] = []


def views(bag: Bag, rows: Sequence[int]) -> list[Observation]:
    """Recorded frames as an engine takes them, at the size they were recorded at."""
    clip = _clip(bag, rows)
    depth = clip.depth.numpy() if bag.config.depth else [None] * len(rows)
    return [
        Observation(
            image=frame,
            K=bag.K,
            world_from_camera=bag.world_from_camera[row],
            time=whole_microseconds(float(bag.stamps[row])),
            depth=metres,
        )
        for row, frame, metres in zip(rows, clip.frames.numpy(), depth)
    ]


def request_for(
    bag: Bag, segment: Segment, about: ModelInfo, config: ReplayConfig, seed: int
) -> ImagineRequest:
    """The recorded poses, one a frame of the model's own clock from the start on, the last held as padding.

    The first frame's time is one that a message can hold: the node counts on from there.
    """
    count = -(-len(segment.future) // about.new_frames_per_chunk) * about.new_frames_per_chunk
    rows = list(segment.future) + [segment.future[-1]] * (count - len(segment.future))
    first = whole_microseconds(float(bag.stamps[segment.observed[-1]])) + 1 / about.frame_rate
    return ImagineRequest(
        request_id=f'segment-{segment.index:05d}-{seed}',
        world_from_camera=bag.world_from_camera[rows],
        times=whole_microseconds(first) + np.arange(count) / about.frame_rate,
        memory=MEMORY,
        seed=seed,
        steps=config.steps or None,
    )


def whole_microseconds(seconds: float) -> float:
    """What is left of a time that went through a message of the node's."""
    return round(seconds * 1e6) / 1e6


def replay_segment(
    engine: Imaginer, bag: Bag, walk: Walk, segment: Segment, config: ReplayConfig, seed: int
) -> Replayed:
    """Imagine one segment and measure it. Raises ValueError that names the segment or the bag's topic."""
    about = engine.describe()
    seen = views(bag, (segment.observed[-1], *segment.future))
    start, *recorded = [fit_image(view.image, about.height, about.width) for view in seen]
    observing, refused, unreadable = walk.to(segment)
    try:
        chunks = list(engine.imagine(request_for(bag, segment, about, config, seed)))
    except InvalidRequest as error:
        raise ValueError(f'segment {segment.index}: {error}') from None
    count = len(segment.future)
    frames = np.concatenate([chunk.frames for chunk in chunks])[:count]
    visibility = np.concatenate([chunk.visibility for chunk in chunks])[:count]
    visible = np.concatenate([chunk.visible for chunk in chunks])[:count]
    observed = np.concatenate([chunk.observed for chunk in chunks])[:count]
    recorded = np.stack(recorded)
    measured = quality(frames, recorded, visibility != NOTHING)
    held = quality(np.broadcast_to(start, recorded.shape).copy(), recorded, visibility != NOTHING)
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
            'held_psnr_all': held[number]['psnr_all'],
            'held_ssim_all': held[number]['ssim_all'],
        }
        for number, row in enumerate(segment.future)
    )
    return Replayed(
        index=segment.index,
        seed=seed,
        start=int(bag.nanoseconds[segment.observed[-1]]),
        frames=frames,
        recorded=recorded,
        visibility=visibility,
        nanoseconds=bag.nanoseconds[list(segment.future)],
        K=np.array(chunks[0].K, np.float64).reshape(-1, 3, 3)[0],
        world_from_camera=bag.world_from_camera[list(segment.future)],
        rows=rows,
        seconds={'observing': observing, 'chunks': [float(chunk.seconds) for chunk in chunks]},
        refused=refused,
        depth_source=chunks[0].depth_source,
        unreadable=unreadable,
    )


def _geometry(
    frames: UInt8[np.ndarray, 'n h w 3'],
    recorded: UInt8[np.ndarray, 'n h w 3'],
    seen: list[Observation],
    about: ModelInfo,
) -> list[dict[str, float]]:
    """`geometry.FIGURES` of every frame, NaN without recorded depth."""
    if all(view.depth is None for view in seen):
        return [dict.fromkeys(FIGURES, math.nan) for _ in frames]
    size = about.height, about.width
    cameras = [fit_observation(replace(view, depth=None), *size).camera for view in seen]
    depth = []
    for view in seen:
        try:
            depth.append(fit_observation(view, *size).depth)
        except InvalidRequest:  # no pixel of it has a depth
            depth.append(torch.full((1, *size), math.nan))
    imagined, true = (
        torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255 for part in (frames, recorded)
    )
    return geometry(imagined, true, torch.cat(depth), concatenate(cameras))


def replay(
    engine: Imaginer,
    bag: Bag,
    segments: Sequence[Segment],
    config: ReplayConfig,
    folder: Path,
    done: Callable[[], None] = lambda: None,
) -> list[str]:
    """Replay the segments that ``folder`` does not hold yet; return why others could not be.

    ``done`` is called after each. What cannot be evaluated does not stop what can.
    """
    walk, failures = Walk(engine, bag), []
    for segment in segments:
        for seed in config.seeds:
            path = folder / f'{segment.index:05d}-{seed}.safetensors'
            if not path.exists():
                try:
                    save(path, replay_segment(engine, bag, walk, segment, config, seed))
                except ValueError as error:
                    failures.append(str(error))
            done()
    return failures


def save(path: Path, replayed: Replayed) -> None:
    """Write a segment; the file is whole or absent."""
    values = {name: getattr(replayed, name) for name in Replayed.__dataclass_fields__}
    tensors = {k: np.ascontiguousarray(v) for k, v in values.items() if isinstance(v, np.ndarray)}
    rest = {name: value for name, value in values.items() if name not in tensors}
    with written_whole(path) as part:
        save_file(tensors, part, metadata={'replayed': as_json(rest, indent=None)})


def load(path: Path) -> Replayed:
    with safe_open(path, framework='np') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        rest = json.loads(file.metadata()['replayed'])
    rest |= {name: tuple(rest.get(name, ())) for name in ('refused', 'unreadable')}
    rest['rows'] = tuple(
        {name: math.nan if value is None else value for name, value in row.items()}
        for row in rest['rows']
    )
    return Replayed(**tensors, **rest)


def identity(bag: Bag, engine: Imaginer, config: ReplayConfig, *, way: str) -> dict:
    """What figures depend on, as `begin_run` writes it. Devices do not count."""
    description = engine.describe()
    settings = {k: v for k, v in asdict(config).items() if k != 'devices'}
    files = sorted(path for path in bag.path.rglob('*') if path.is_file()) or [bag.path]
    return {
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
