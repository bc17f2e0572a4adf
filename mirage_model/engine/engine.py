"""The engine in the caller's process: a model and named memories, with NumPy at the boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
import gc
import math
from pathlib import Path
import time

import numpy as np
import torch

from mirage_model.camera import check_cameras, check_rigid
from mirage_model.engine.candidates import generate_candidates
from mirage_model.engine.config import EngineOptions
from mirage_model.engine.inputs import cameras_along_all, fit_observation
from mirage_model.engine.latency import LatencyModel
from mirage_model.engine.outputs import (
    decode_memory,
    fit_colours,
    latent_colours,
    to_chunk,
    to_score,
)
from mirage_model.engine.session import (
    SCALES,
    Session,
    denoising_steps,
    load_session,
    target_cameras,
    text_condition,
)
from mirage_model.interface import (
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
from mirage_model.memory.eviction import MemoryLimits
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.memory.registry import create_memory
from mirage_model.model.acceleration import Acceleration
from mirage_model.model.checkpoint import EMBEDDED, Model, load_model
from mirage_model.model.rollout import on_latent_grid, rollouts
from mirage_model.perception import with_sensor_depth
from mirage_model.write_filter import write_frames


class Engine:
    """`EngineProtocol` in the caller's process and thread.

    Not thread-safe: call it from one thread.
    """

    def __init__(
        self,
        model: Model,
        *,
        limits: MemoryLimits = MemoryLimits(),
        allow_unscaled_depth: bool = False,
        refine_cameras: bool = False,
    ) -> None:
        """Create an engine without memories.

        Args:
            limits: Limits of each memory, loaded ones included.
            allow_unscaled_depth: Accept observations whose metres are the network's guess.
            refine_cameras: Estimate the cameras of generated frames; see `rollouts`.

        Raises:
            ValueError: The limits are not valid.
        """
        self.model = model
        self._limits = limits
        self._memory_config = MemoryConfig(
            channels=model.codec.channels, splat_size=model.config.splat_size, **asdict(limits)
        )
        self._allow_unscaled_depth = allow_unscaled_depth
        self._refine_cameras = refine_cameras
        self._device = model.device
        self._released = False
        self._owns_model = True
        self._sessions: dict[str, Session] = {}
        self._latency = LatencyModel()
        self._colour_from_latents: torch.Tensor | None = None

    @classmethod
    def from_folder(
        cls,
        folder: Path | None = None,
        *,
        device: str = 'cpu',
        limits: MemoryLimits = MemoryLimits(),
        allow_unscaled_depth: bool = False,
        refine_cameras: bool = False,
        labeller: Path | None = None,
        acceleration: Acceleration = Acceleration(),
    ) -> Engine:
        """Load a model folder; None loads mirage-tiny.

        Args:
            labeller: Folder of a labeller, in place of the model's own; see `Labeller`.

        Raises:
            ValueError: The folder or the limits are not valid.
        """
        dtype = torch.bfloat16 if device.startswith('cuda') else torch.float32
        model = load_model(
            EMBEDDED if folder is None else folder,
            device=device,
            dtype=dtype,
            labeller=labeller,
            acceleration=acceleration,
        )
        return cls(
            model,
            limits=limits,
            allow_unscaled_depth=allow_unscaled_depth,
            refine_cameras=refine_cameras,
        )

    @classmethod
    def from_options(
        cls, options: EngineOptions, *, device: str = 'cpu', limits: MemoryLimits = MemoryLimits()
    ) -> Engine:
        """Load the model that options name; raise ValueError as `from_folder` does."""
        return cls.from_folder(
            Path(options.model_folder) if options.model_folder else None,
            device=device,
            limits=limits,
            allow_unscaled_depth=options.allow_unscaled_depth,
            refine_cameras=options.refine_cameras,
            labeller=Path(options.labeller) if options.labeller else None,
            acceleration=Acceleration(
                compile=options.compile, offload=options.offload, float8=options.float8
            ),
        )

    def for_session(self, limits: MemoryLimits) -> Engine:
        """Return an engine without memories that shares the model and its timings.

        Its `warm` and `release` leave the model where it is.
        """
        engine = Engine(
            self.model,
            limits=limits,
            allow_unscaled_depth=self._allow_unscaled_depth,
            refine_cameras=self._refine_cameras,
        )
        engine._latency, engine._owns_model = self._latency, False
        return engine

    def describe(self) -> ModelInfo:
        return self.model.info

    def warm(self) -> None:
        self._released = False
        if not self._owns_model:
            return
        self._move_model(self._device)
        config = self.model.config
        scratch = Engine(self.model, refine_cameras=self._refine_cameras)
        scratch._latency = self._latency
        rng = np.random.default_rng(0)
        focal = max(config.height, config.width) / 2
        observation = Observation(
            image=rng.integers(0, 256, (config.height, config.width, 3), dtype=np.uint8),
            K=np.array([[focal, 0, config.width / 2], [0, focal, config.height / 2], [0, 0, 1.0]]),
            world_from_camera=np.eye(4),
            time=0.0,
            depth=np.full((config.height, config.width), 3.0, np.float32),
        )
        scratch.seed(observation)
        scratch.observe(observation)
        frames = 2 * self.model.new_frames
        path = Trajectory(
            world_from_camera=np.tile(np.eye(4), (frames, 1, 1)),
            times=np.arange(1, frames + 1) / config.frame_rate,
        )
        request = ImagineRequest(
            request_id='', memory_frames=True, steps=2, keep_in='kept', **vars(path)
        )
        for _ in scratch.imagine(request):
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
        with suppress(InvalidRequest):  # some models have no half resolution
            list(scratch.imagine_candidates(half))

    def release(self) -> None:
        self._released = True
        if self._owns_model:
            self._move_model(torch.device('cpu'))
        for session in self._sessions.values():
            if isinstance(session.memory, LatentMemory):
                session.memory.release()
        gc.collect()
        if self._device.type == 'cuda':
            torch.cuda.empty_cache()

    def device_nbytes(self) -> int:
        return torch.cuda.memory_reserved(self._device) if self._device.type == 'cuda' else 0

    def seed(self, observation: Observation, *, memory: str = 'default') -> DepthSource:
        self._check_ready()
        kind, codec = self.model.config.memory, self.model.codec
        session = self._write(observation, create_memory(kind, self._memory_config, codec))
        self._sessions[memory] = session
        return session.depth_source

    def observe(self, observation: Observation, *, memory: str = 'default') -> DepthSource:
        self._check_ready()
        before = self._session(memory)
        session = self._write(observation, before.memory, before.depth_source)
        self._sessions[memory] = session
        return session.depth_source

    def imagine(
        self, request: ImagineRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        self._check_ready()
        session = self._session(request.memory)
        steps = denoising_steps(request.steps, self.model)
        text = text_condition(request, self.model)
        memory = session.memory if request.keep_in == request.memory else session.memory.fork()
        cameras = target_cameras(
            session, self.model, request.world_from_camera, request.times, request.K
        )
        chunks = rollouts(
            self.model,
            [session.rollout_input(memory, cameras, request.seed)],
            steps=steps,
            text=text,
            refine_cameras=self._refine_cameras,
            write_last=request.keep_in is not None,
            cancelled=cancelled,
        )
        began = time.monotonic()
        for index, (_, generated) in enumerate(chunks):
            seconds = time.monotonic() - began
            self._latency.update(
                SCALES['full'], 1, steps=steps * text.calls, stages=generated.stages
            )
            yield to_chunk(
                generated,
                model=self.model,
                request=request,
                index=index,
                count=len(cameras) // self.model.new_frames,
                seed=request.seed,
                session=session,
                memory_frames=decode_memory(memory, generated.cameras, self.model)
                if request.memory_frames
                else None,
                seconds=seconds,
            )
            began = time.monotonic()
        # the session of the request's memory may have been observed, reanchored or dropped
        # meanwhile
        if request.keep_in is not None and request.keep_in != request.memory:
            self._sessions[request.keep_in] = replace(session, memory=memory)

    def imagine_candidates(
        self, request: CandidatesRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Candidate]:
        self._check_ready()
        yield from generate_candidates(
            self.model,
            self._session(request.memory),
            request,
            latency=self._latency,
            refine_cameras=self._refine_cameras,
            cancelled=cancelled,
        )

    def predicted_seconds(self, request: ImagineRequest | CandidatesRequest) -> float:
        paths: Sequence[ImagineRequest | Trajectory]
        if isinstance(request, ImagineRequest):
            paths, scale, batch = [request], SCALES['full'], 1
        else:
            paths, scale = request.trajectories, SCALES[request.resolution]
            batch = min(request.batch, len(paths))
        seconds = self._latency.predict(
            scale,
            batch,
            steps=denoising_steps(request.steps, self.model) * (1 if request.guidance == 1 else 2),
            chunks=sum(math.ceil(len(path.times) / self.model.new_frames) for path in paths),
        )
        if seconds is None:
            raise InvalidRequest('predicted seconds: no chunk was timed yet, call warm first')
        return seconds

    def score(
        self,
        trajectories: Sequence[Trajectory],
        *,
        memory: str = 'default',
        threshold: float = 0.5,
        coarse: bool = False,
    ) -> list[CoverageScore]:
        session = self._session(memory)
        if not trajectories:
            return []
        lengths = [len(path.times) for path in trajectories]
        cameras = on_latent_grid(cameras_along_all(session.camera, trajectories), self.model)
        cameras = cameras.to(session.frame.device)
        if coarse:
            latent_memory = self._latent_memory(session, 'scored coarsely')
            coverages = latent_memory.coverage(cameras).split(lengths)
        else:
            ends = np.cumsum(lengths).tolist()
            paths = [cameras[end - n : end] for n, end in zip(lengths, ends)]
            coverages = [
                Coverage.from_readout(session.memory.readout(path, latents=False))
                for path in paths
            ]
        return [to_score(coverage, threshold) for coverage in coverages]

    def reanchor(self, new_from_old: np.ndarray, *, memory: str = 'default') -> None:
        session = self._session(memory)
        matrix = torch.from_numpy(np.array(new_from_old, dtype=np.float64))
        if matrix.shape != (4, 4):
            raise InvalidRequest(
                f'new_from_old: shape {tuple(matrix.shape)} is not allowed, (4, 4) is needed'
            )
        world_from_camera = session.camera.world_from_camera
        reanchored = matrix.to(world_from_camera.device) @ world_from_camera.double()
        try:
            check_rigid(matrix)
            camera = check_cameras(replace(session.camera, world_from_camera=reanchored.float()))
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        self._latent_memory(session, 'reanchored').transform(matrix)
        self._sessions[memory] = replace(session, camera=camera)

    def points(self, *, memory: str = 'default', max_points: int = 100_000) -> Points:
        latent_memory = self._latent_memory(self._session(memory), 'shown')
        positions, latents, observed = latent_memory.sample_points(max_points)
        if self._colour_from_latents is None:
            config = self.model.config
            self._colour_from_latents = fit_colours(self.model.codec, config.height, config.width)
        colours = latent_colours(latents, self._colour_from_latents)
        return Points(positions=positions.numpy(), colours=colours, observed=observed.numpy())

    def stats(self, *, memory: str = 'default') -> MemoryStats:
        content = self._session(memory).memory
        return MemoryStats(points=len(content), nbytes=content.nbytes + content.index_nbytes)

    def save(self, path: Path, *, memory: str = 'default') -> None:
        session = self._session(memory)
        self._latent_memory(session, 'saved')
        session.save(path)

    def load(self, path: Path, *, memory: str = 'default') -> None:
        session = load_session(path, self.model, self._limits)
        if session.depth_source == 'perception_unscaled' and not self._allow_unscaled_depth:
            raise InvalidRequest(
                f'{path}: its depth is unscaled, allow unscaled depth or seed the memory anew'
            )
        self._sessions[memory] = session

    def drop(self, *, memory: str = 'default') -> None:
        self._sessions.pop(memory, None)

    def link(self) -> None:
        return None

    def close(self) -> None:
        self._sessions.clear()

    def _session(self, memory: str) -> Session:
        if memory not in self._sessions:
            raise InvalidRequest(f'memory {memory!r}: it has no seed yet, seed or load it first')
        return self._sessions[memory]

    def _check_ready(self) -> None:
        if self._released:
            raise InvalidRequest('model: it was released, call warm first')

    def _latent_memory(self, session: Session, verb: str) -> LatentMemory:
        if not isinstance(session.memory, LatentMemory):
            raise InvalidRequest(
                f'memory: the kind {self.model.config.memory!r} cannot be {verb}, '
                "only 'latent' can"
            )
        return session.memory

    def _move_model(self, device: torch.device) -> None:
        model = self.model
        model.codec.to(device)
        if model.backbone is not None and not model.acceleration.offload:
            model.backbone.to(device)
        if model.resampler is not None:
            model.resampler.to(device)
        model.perception.to(device)
        if model.prompts is not None:
            model.prompts.to(device)
        self.model = replace(model, text=model.text.to(device))
        self._sessions = {name: session.to(device) for name, session in self._sessions.items()}

    def _write(
        self, observation: Observation, memory: Memory, before: DepthSource | None = None
    ) -> Session:
        """Write an observation into a memory and return the session that starts from it.

        Args:
            before: Depth source of the memory so far; unscaled depth stays unscaled.

        Raises:
            InvalidRequest: The observation is malformed, or its depth is unscaled and not allowed.
        """
        model = self.model
        fitted = fit_observation(observation, model.config.height, model.config.width)
        frame, camera = fitted.frame.to(model.device), fitted.camera.to(model.device)
        readout = memory.readout(on_latent_grid(camera, model)) if len(memory) else None
        estimate = model.perception.estimate(frame, camera, readout)
        scaled = bool(estimate.scaled.all())
        source: DepthSource = 'perception' if scaled else 'perception_unscaled'
        if fitted.depth is not None:
            source = 'sensor'
            estimate = with_sensor_depth(estimate, fitted.depth.to(model.device))
        if before == 'perception_unscaled':
            source = before
        if source == 'perception_unscaled' and not self._allow_unscaled_depth:
            raise InvalidRequest(
                'observation: it has no depth and estimated depth is unscaled, '
                'send depth or allow unscaled depth'
            )
        if not bool((estimate.confidence > 0).any()):
            raise InvalidRequest(
                'observation: it has no depth and the model cannot tell it from this image, '
                'send depth or another image'
            )
        write_frames(memory, frame, estimate, codec=model.codec, observed=True)
        return Session(
            memory=memory,
            frame=frame,
            depth=estimate.depth_with_sky(),
            camera=estimate.cameras,
            depth_source=source,
        )
