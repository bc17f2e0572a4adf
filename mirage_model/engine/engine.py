"""The engine: memories and a model behind the verbs of `EngineProtocol`, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
import gc
import logging
import math
from pathlib import Path
import time

import numpy as np
import torch

from mirage_model.camera import Cameras, check_cameras, check_rigid
from mirage_model.engine.inputs import cameras_along, cameras_along_all, fit_image, fit_view
from mirage_model.engine.latency import LatencyModel
from mirage_model.engine.outputs import (
    chunk_of,
    colours_of,
    fit_colours,
    last_frame_of,
    memory_frames,
    score_of,
)
from mirage_model.engine.session import SCALES, Session, branch, load_session, scaled
from mirage_model.interface import (
    Cancelled,
    Candidate,
    CandidatesRequest,
    Chunk,
    CoverageScore,
    DepthSource,
    ImagineRequest,
    InvalidRequest,
    MemoryStats,
    ModelInfo,
    Observation,
    Points,
    Trajectory,
)
from mirage_model.memory import Memory
from mirage_model.memory.coverage import Coverage
from mirage_model.memory.eviction import Limits
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.memory.registry import create_memory
from mirage_model.model.checkpoint import EMBEDDED, Model, load_model
from mirage_model.model.rollout import on_latent_grid, rollouts
from mirage_model.perception import Estimate
from mirage_model.write_filter import write_frames

_log = logging.getLogger(__name__)


class Engine:
    """`EngineProtocol` in the caller's own process and thread. Not thread-safe: one worker drives it."""

    def __init__(
        self,
        model: Model,
        *,
        limits: Limits = Limits(),
        allow_unscaled_depth: bool = False,
        refine_cameras: bool = False,
    ):
        """``limits``: of every memory, those that are loaded too.

        ``allow_unscaled_depth``: accept views whose metres are only the network's guess.
        ``refine_cameras``: as `rollout` says. Raises ValueError for limits that make no sense.
        """
        self._limits = limits
        self._memory_config = MemoryConfig(
            channels=model.codec.channels, splat_size=model.config.splat_size, **asdict(limits)
        )
        self.model = model
        self._refine_cameras = refine_cameras
        self._allow_unscaled_depth = allow_unscaled_depth
        self._places: dict[str, Session] = {}
        self._device = model.device
        self._released = False
        self._pace = LatencyModel()
        self._colour_from_latents: torch.Tensor | None = None

    @classmethod
    def from_folder(
        cls,
        folder: Path | None = None,
        *,
        device: str = 'cpu',
        limits: Limits = Limits(),
        allow_unscaled_depth: bool = False,
        refine_cameras: bool = False,
    ) -> Engine:
        """Load a model folder, None being the embedded mirage-tiny. Raises ValueError naming what is wrong."""
        dtype = torch.bfloat16 if device.startswith('cuda') else torch.float32
        model = load_model(EMBEDDED if folder is None else folder, device=device, dtype=dtype)
        return cls(
            model,
            limits=limits,
            allow_unscaled_depth=allow_unscaled_depth,
            refine_cameras=refine_cameras,
        )

    def describe(self) -> ModelInfo:
        return self.model.info

    def warm(self) -> None:
        """As `EngineProtocol.warm`: a seed, an observation, two chunks, and one of half the size where it fits."""
        self._move(self._device)
        self._released = False
        config = self.model.config
        scratch = Engine(self.model, refine_cameras=self._refine_cameras)
        scratch._pace = self._pace
        rng = np.random.default_rng(0)
        focal = max(config.height, config.width) / 2
        view = Observation(
            image=rng.integers(0, 256, (config.height, config.width, 3), dtype=np.uint8),
            K=np.array([[focal, 0, config.width / 2], [0, focal, config.height / 2], [0, 0, 1.0]]),
            world_from_camera=np.eye(4),
            time=0.0,
            depth=np.full((config.height, config.width), 3.0, np.float32),
        )
        scratch.seed(view)
        scratch.observe(view)
        frames = 2 * self.model.new_frames
        path = Trajectory(
            world_from_camera=np.tile(np.eye(4), (frames, 1, 1)),
            times=np.arange(1, frames + 1) / config.frame_rate,
        )
        for _ in scratch.imagine(
            ImagineRequest(
                request_id='', memory_frames=True, steps=2, keep_in='kept', **vars(path)
            )
        ):
            pass
        for coarse in (False, True):
            scratch.score([path], memory='kept', coarse=coarse)
        half = CandidatesRequest(
            request_id='',
            trajectories=(path,),
            seeds=(0,),
            memory='kept',
            steps=1,
            resolution='half',
        )
        with suppress(InvalidRequest):  # sizes that have no half
            list(scratch.imagine_candidates(half))

    def release(self) -> None:
        """As `EngineProtocol.release`: the weights go to the host's memory, the caches are dropped."""
        self._released = True
        self._move(torch.device('cpu'))
        for place in self._places.values():
            if isinstance(place.memory, LatentMemory):
                place.memory.release()
        gc.collect()
        if self._device.type == 'cuda':
            torch.cuda.empty_cache()

    def device_nbytes(self) -> int:
        return torch.cuda.memory_reserved(self._device) if self._device.type == 'cuda' else 0

    def seed(self, view: Observation, *, memory: str = 'default') -> DepthSource:
        """As `EngineProtocol.seed`. A refused view leaves the memory of that name as it was."""
        self._check_ready()
        memory_of = self.model.config.memory
        place = self._write(view, create_memory(memory_of, self._memory_config, self.model.codec))
        self._places[memory] = place
        return place.depth_source

    def observe(self, view: Observation, *, memory: str = 'default') -> DepthSource:
        before = self._ready(memory)
        place = self._write(view, before.memory, before.depth_source)
        self._places[memory] = place
        return place.depth_source

    def imagine(
        self, request: ImagineRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        place = self._ready(request.memory)
        steps = self._steps(request.steps)
        memory = place.memory if request.keep_in == request.memory else place.memory.fork()
        cameras = self._frames_along(place, request.world_from_camera, request.times)
        chunks = rollouts(
            self.model,
            [branch(place, memory, cameras, request.seed)],
            steps=steps,
            refine_cameras=self._refine_cameras,
            write_last=request.keep_in is not None,
            cancelled=cancelled,
        )
        began = time.monotonic()
        for index, (_, imagined) in enumerate(chunks):
            seconds = time.monotonic() - began
            self._pace.learn(SCALES['full'], 1, steps=steps, stages=imagined.stages)
            yield chunk_of(
                imagined,
                model=self.model,
                request_id=request.request_id,
                index=index,
                count=len(cameras) // self.model.new_frames,
                seed=request.seed,
                depth_source=place.depth_source,
                memory_frames=memory_frames(memory, imagined.cameras, self.model)
                if request.memory_frames
                else None,
                seconds=seconds,
            )
            began = time.monotonic()
        # that of the request's own name may have seen more, moved or gone meanwhile
        if request.keep_in not in (None, request.memory):
            self._places[request.keep_in] = replace(place, memory=memory)

    def imagine_candidates(
        self, request: CandidatesRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Candidate]:
        ends = time.monotonic() + (math.inf if request.deadline is None else request.deadline)
        place = scaled(self._ready(request.memory), self.model, request.resolution)
        every = self._candidates(request, place)
        goal = None if request.goal is None else self._latents_of(request.goal, place)
        batch = request.batch
        while every:
            part = every[:batch]
            try:
                made = self._chunks_of(request, place, part, ends, cancelled)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                batch = len(part) // 2
                _log.warning('no memory for %d candidates at once: now %d', len(part), batch)
                continue
            every = every[batch:]
            for one, chunks in zip(part, made, strict=True):
                last = chunks[-1] if chunks else None
                compare = goal is not None and last is not None
                yield Candidate(
                    index=one.index,
                    chunks=tuple(chunks),
                    complete=last is not None and last.index + 1 == last.count,
                    goal_distance=self._distance(last, goal, place) if compare else math.nan,
                )

    def predicted_seconds(self, request: ImagineRequest | CandidatesRequest) -> float:
        single = isinstance(request, ImagineRequest)
        paths = [request] if single else request.trajectories
        seconds = self._pace.seconds(
            SCALES['full' if single else request.resolution],
            1 if single else min(request.batch, len(paths)),
            steps=self._steps(request.steps),
            chunks=sum(math.ceil(len(path.times) / self.model.new_frames) for path in paths),
        )
        if seconds is None:
            raise InvalidRequest('no chunk was timed yet: call warm')
        return seconds

    def score(
        self,
        trajectories: Sequence[Trajectory],
        *,
        memory: str = 'default',
        threshold: float = 0.5,
        coarse: bool = False,
    ) -> list[CoverageScore]:
        place = self._place(memory)
        if not trajectories:
            return []
        lengths = [len(path.times) for path in trajectories]
        cameras = on_latent_grid(cameras_along_all(place.camera, trajectories), self.model)
        cameras = cameras.to(place.frame.device)
        if coarse:
            every = self._latent(place, 'scored coarsely').coverage(cameras).split(lengths)
        else:
            ends = np.cumsum(lengths).tolist()
            paths = [cameras[end - n : end] for n, end in zip(lengths, ends)]
            every = [Coverage.of(place.memory.readout(path, latents=False)) for path in paths]
        return [score_of(coverage, threshold) for coverage in every]

    def reanchor(self, new_from_old: np.ndarray, *, memory: str = 'default') -> None:
        """As `EngineProtocol.reanchor`; a transform that is refused leaves the memory as it was."""
        place = self._place(memory)
        matrix = torch.from_numpy(np.array(new_from_old, dtype=np.float64))
        if matrix.shape != (4, 4):
            raise InvalidRequest(f'need a transform (4, 4), got {tuple(matrix.shape)}')
        at = matrix.to(place.camera.world_from_camera.device)
        moved = at @ place.camera.world_from_camera.double()
        try:
            check_rigid(matrix)
            camera = check_cameras(replace(place.camera, world_from_camera=moved.float()))
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        self._latent(place, 'moved').move(matrix)
        self._places[memory] = replace(place, camera=camera)

    def points(self, *, memory: str = 'default', most: int = 100_000) -> Points:
        positions, latents, observed = self._latent(self._place(memory), 'shown').some(most)
        if self._colour_from_latents is None:
            config = self.model.config
            self._colour_from_latents = fit_colours(self.model.codec, config.height, config.width)
        colours = colours_of(latents, self._colour_from_latents)
        return Points(positions=positions.numpy(), colours=colours, observed=observed.numpy())

    def holdings(self, *, memory: str = 'default') -> MemoryStats:
        held = self._place(memory).memory
        return MemoryStats(cells=len(held), nbytes=held.nbytes + held.index_nbytes)

    def save(self, path: Path, *, memory: str = 'default') -> None:
        """Write a memory and the view that imagination starts from, as one safetensors file.

        A file that is there is replaced whole or not at all; OSError is the disk's.
        """
        place = self._place(memory)
        self._latent(place, 'saved')
        place.save(path)

    def load(self, path: Path, *, memory: str = 'default') -> None:
        """Read what `save` wrote. A file that is refused leaves the memory of that name as it was."""
        place = load_session(path, self.model, self._limits)
        if place.depth_source == 'perception_unscaled' and not self._allow_unscaled_depth:
            raise InvalidRequest(
                f'{path}: its metres are a guess: seed anew, or allow unscaled depth'
            )
        self._places[memory] = place

    def drop(self, *, memory: str = 'default') -> None:
        """Forget a memory; dropping one that does not exist is no error."""
        self._places.pop(memory, None)

    def _place(self, memory: str) -> Session:
        if memory not in self._places:
            raise InvalidRequest(f'memory {memory!r} has no seed yet')
        return self._places[memory]

    def _check_ready(self) -> None:
        if self._released:
            raise InvalidRequest('the model was released: call warm first')

    def _ready(self, memory: str) -> Session:
        self._check_ready()
        return self._place(memory)

    def _move(self, device: torch.device) -> None:
        model = self.model
        model.codec.to(device)
        model.backbone.to(device)
        model.perception.to(device)
        self.model = replace(model, text=model.text.to(device))
        self._places = {name: place.to(device) for name, place in self._places.items()}

    def _latent(self, place: Session, verb: str) -> LatentMemory:
        if not isinstance(place.memory, LatentMemory):
            raise InvalidRequest(
                f'a memory of the kind {self.model.config.memory!r} cannot be {verb}'
            )
        return place.memory

    def _write(
        self, view: Observation, memory: Memory, before: DepthSource | None = None
    ) -> Session:
        """``before`` is where the memory's depth came from: metres that were guessed once stay a guess."""
        fitted = fit_view(view, self.model.config.height, self.model.config.width)
        frame, camera = fitted.frame.to(self.model.device), fitted.camera.to(self.model.device)
        on_cells = on_latent_grid(camera, self.model)
        readout = memory.readout(on_cells) if len(memory) else None
        seen = self.model.perception.estimate(frame, camera, readout)
        source: DepthSource = 'perception' if bool(seen.scaled.all()) else 'perception_unscaled'
        if fitted.depth is not None:
            source, depth = 'sensor', fitted.depth.to(self.model.device)
            seen = Estimate(
                depth=depth,
                cameras=camera,
                confidence=(depth > 0).float(),
                sky=seen.sky,
                moving=seen.moving,
                scaled=torch.ones_like(seen.scaled),
            )
        if before == 'perception_unscaled':
            source = before
        if source == 'perception_unscaled' and not self._allow_unscaled_depth:
            raise InvalidRequest(
                'the view has no depth and its metres would be a guess: send depth, or allow unscaled depth'
            )
        write_frames(memory, frame, seen, codec=self.model.codec, observed=True)
        return Session(memory=memory, frame=frame, camera=seen.cameras, depth_source=source)

    def _steps(self, steps: int | None) -> int:
        if steps is not None and not 1 <= steps <= 1000:
            raise InvalidRequest(f'steps must be in 1..1000, got {steps}')
        return steps or self.model.config.steps

    def _frames_along(
        self, place: Session, world_from_camera: np.ndarray, times: np.ndarray
    ) -> Cameras:
        """The cameras of a path to imagine, on the model's device."""
        cameras = cameras_along(place.camera, world_from_camera, times)
        if len(cameras) % self.model.new_frames:
            raise InvalidRequest(
                f'{len(cameras)} poses do not fit: the count must be a multiple of {self.model.new_frames}'
            )
        return cameras.to(self.model.device)

    def _candidates(self, request: CandidatesRequest, place: Session) -> list[_One]:
        """The candidates as cameras, once all that can be refused about the request was looked at."""
        if not request.trajectories or len(request.seeds) != len(request.trajectories):
            raise InvalidRequest(
                f'need trajectories and a seed for each, got {len(request.trajectories)} '
                f'and {len(request.seeds)}'
            )
        if request.batch < 1:
            raise InvalidRequest(f'batch must be 1 at least, got {request.batch}')
        self._steps(request.steps)
        result = []
        for index, (path, seed) in enumerate(
            zip(request.trajectories, request.seeds, strict=True)
        ):
            try:
                cameras = self._frames_along(place, path.world_from_camera, path.times)
            except InvalidRequest as error:
                raise InvalidRequest(f'candidate {index}: {error}') from None
            result.append(_One(index=index, cameras=cameras, seed=seed))
        return result

    def _chunks_of(
        self,
        request: CandidatesRequest,
        place: Session,
        part: list[_One],
        ends: float,
        cancelled: Callable[[], bool],
    ) -> list[list[Chunk]]:
        """The chunks of some candidates, denoised together, as far as they are made in time."""
        made: list[list[Chunk]] = [[] for _ in part]
        if time.monotonic() >= ends:
            return made
        steps = self._steps(request.steps)
        chunks = rollouts(
            self.model,
            [branch(place, place.memory.fork(), one.cameras, one.seed) for one in part],
            steps=steps,
            refine_cameras=self._refine_cameras,
            write_last=False,
            cancelled=lambda: cancelled() or time.monotonic() >= ends,
        )
        try:
            for row, imagined in chunks:
                scale = SCALES[request.resolution]
                self._pace.learn(scale, len(part), steps=steps, stages=imagined.stages)
                chunk = chunk_of(
                    imagined,
                    model=self.model,
                    request_id=request.request_id,
                    index=made[row][-1].index + 1 if made[row] else 0,
                    count=len(part[row].cameras) // self.model.new_frames,
                    seed=part[row].seed,
                    depth_source=place.depth_source,
                    memory_frames=None,
                    seconds=sum(imagined.stages.values()),
                )
                if request.last_frame_only:
                    made[row] = [last_frame_of(chunk)]
                else:
                    made[row].append(chunk)
                if time.monotonic() >= ends:
                    break
        except Cancelled:
            if cancelled():
                raise
        return made

    def _latents_of(self, image: np.ndarray, place: Session) -> torch.Tensor:
        """The codec's latents of an image, fitted to the frames of a place."""
        frame = fit_image(image, place.camera.height, place.camera.width)
        return self.model.codec.encode_images(frame.to(self.model.device))

    def _distance(self, chunk: Chunk, goal: torch.Tensor, place: Session) -> float:
        """As `Candidate.goal_distance`."""
        return float((self._latents_of(chunk.frames[-1], place) - goal).square().mean().sqrt())


@dataclass(frozen=True, kw_only=True)
class _One:
    """One of several paths to imagine, and its place among them."""

    index: int
    cameras: Cameras
    seed: int
