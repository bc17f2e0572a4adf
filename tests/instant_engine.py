"""An engine without a model, for tests of the node; as a program it runs a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
import os
from pathlib import Path
import sys
import time

import numpy as np

from mirage_model.interface import (
    IMAGINED,
    NOTHING,
    OBSERVED,
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


class InstantEngine:
    """Engine that answers with the seed's picture, or its mean colour at another size, brighter
    with every frame.

    A mask in three bands.
    """

    def __init__(
        self,
        height: int = 96,
        width: int = 160,
        new_frames: int = 16,
        steps: int = 4,
        step_seconds: float = 0.0,
        allow_unscaled_depth: bool = False,
        segments_dynamic: bool = True,
    ):
        self._description = ModelInfo(
            model='instant',
            sha256='0' * 64,
            height=height,
            width=width,
            frame_rate=8.0,
            new_frames_per_chunk=new_frames,
            steps=steps,
            segments_dynamic=bool(segments_dynamic),
        )
        self._step_seconds = step_seconds
        self._allow_unscaled_depth = allow_unscaled_depth
        self.memories: dict[str, Observation] = {}
        self.warmed = self.released = 0

    def describe(self) -> ModelInfo:
        return self._description

    def seed(self, observation: Observation, *, memory: str = 'default') -> DepthSource:
        if (observation.image == 13).all():
            raise RuntimeError('this image breaks the engine')
        if observation.depth is None and not self._allow_unscaled_depth:
            raise InvalidRequest('the view has no depth: send it, or allow unscaled depth')
        self.memories[memory] = observation
        return 'perception_unscaled' if observation.depth is None else 'sensor'

    def observe(self, observation: Observation, *, memory: str = 'default') -> DepthSource:
        return self.seed(observation, memory=memory)

    def imagine(
        self, request: ImagineRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        about = self._description
        view = self._memory(request.memory)
        K = view.K if request.K is None else request.K
        n = about.new_frames_per_chunk
        if len(request.times) % n:
            raise InvalidRequest(f'{len(request.times)} frames are no multiple of {n}')
        count = len(request.times) // n
        mask = np.full((n, about.height, about.width), NOTHING, np.uint8)
        mask[:, :, about.width // 4 :] = IMAGINED
        mask[:, :, about.width // 2 :] = OBSERVED
        for index in range(count):
            started = time.monotonic()
            for _ in range(request.steps or about.steps):
                time.sleep(self._step_seconds)
                if cancelled():
                    raise Cancelled
            part = slice(index * n, (index + 1) * n)
            brightness = np.arange(part.start, part.stop) + 1 + request.seed
            frames = np.empty((n, about.height, about.width, 3), np.uint8)
            same_size = view.image.shape == frames.shape[1:]
            frames[:] = view.image if same_size else view.image.mean(axis=(0, 1)).astype(np.uint8)
            frames += brightness.astype(np.uint8)[:, None, None, None]
            yield Chunk(
                request_id=request.request_id,
                index=index,
                count=count,
                frames=frames,
                visibility=mask,
                visible=np.full(n, 0.75, np.float32),
                observed=np.full(n, 0.5, np.float32),
                K=np.broadcast_to(np.float32(K), (n, 3, 3)),
                world_from_camera=request.world_from_camera[part].astype(np.float32),
                times=request.times[part],
                memory_frames=frames if request.memory_frames else None,
                depth_source='perception_unscaled' if view.depth is None else 'sensor',
                observation_time=view.time,
                model=about.model,
                seed=request.seed,
                prompt=request.prompt,
                seconds=time.monotonic() - started,
            )
        if request.keep_in is not None:
            self.memories[request.keep_in] = view

    def imagine_candidates(
        self, request: CandidatesRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Candidate]:
        """Yield one candidate after the other, whatever the batch; the goal distance is the
        candidate's index."""
        ends = np.inf if request.deadline is None else time.monotonic() + request.deadline

        def stop() -> bool:
            return cancelled() or time.monotonic() > ends

        for index, path in enumerate(request.trajectories):
            chunks: list[Chunk] = []
            one = ImagineRequest(
                request_id=request.request_id,
                world_from_camera=path.world_from_camera,
                times=path.times,
                memory=request.memory,
                seed=request.seeds[index],
                steps=request.steps,
                prompt=request.prompt,
                K=request.K,
            )
            try:
                for chunk in self.imagine(one, cancelled=stop):
                    chunks.append(chunk)
                complete = True
            except Cancelled:
                if cancelled():
                    raise
                complete = False
            yield Candidate(
                index=index,
                chunks=tuple(chunks),
                complete=complete,
                goal_distance=float('nan') if request.goal is None or not chunks else float(index),
            )

    def predicted_seconds(self, request: ImagineRequest | CandidatesRequest) -> float:
        about = self._description
        paths = request.trajectories if isinstance(request, CandidatesRequest) else [request]
        chunks = sum(-(-len(path.times) // about.new_frames_per_chunk) for path in paths)
        return chunks * (request.steps or about.steps) * self._step_seconds

    def score(
        self,
        trajectories: Sequence[Trajectory],
        *,
        memory: str = 'default',
        threshold: float = 0.5,
        coarse: bool = False,
    ) -> list[CoverageScore]:
        """Score all as observed, as many seconds ago as the memory's view lies metres ahead of the
        first pose along x."""
        view = self._memory(memory)
        x = view.world_from_camera[0, 3]
        ages = [float(x - path.world_from_camera[0, 0, 3]) for path in trajectories]
        return [
            CoverageScore(
                visible=np.ones(len(path.times)),
                observed=np.ones(len(path.times)),
                age=np.full(len(path.times), age),
                mean_age=age,
                visible_ends=0 if threshold > 1 else None,
                observed_ends=0 if threshold > 1 else None,
            )
            for path, age in zip(trajectories, ages)
        ]

    def warm(self) -> None:
        self.warmed += 1

    def release(self) -> None:
        self.released += 1

    def device_nbytes(self) -> int:
        return 0

    def reanchor(self, new_from_old: np.ndarray, *, memory: str = 'default') -> None:
        view = self._memory(memory)
        self.memories[memory] = replace(
            view, world_from_camera=new_from_old @ view.world_from_camera
        )

    def points(self, *, memory: str = 'default', max_points: int = 100_000) -> Points:
        """Return the centre of the view's camera as the only point."""
        view = self._memory(memory)
        return Points(
            positions=np.float32(view.world_from_camera[None, :3, 3]),
            colours=view.image[:1, 0],
            observed=np.ones(1, np.bool_),
        )

    def stats(self, *, memory: str = 'default') -> MemoryStats:
        return MemoryStats(points=1, nbytes=self._memory(memory).image.nbytes)

    def save(self, path: Path, *, memory: str = 'default') -> None:
        with path.open('wb') as file:  # by a name alone, numpy would add to it
            np.savez(file, image=self._memory(memory).image)

    def load(self, path: Path, *, memory: str = 'default') -> None:
        image = np.load(path)['image']
        self.memories[memory] = Observation(
            image=image, K=np.eye(3), world_from_camera=np.eye(4), time=0.0
        )

    def drop(self, *, memory: str = 'default') -> None:
        self.memories.pop(memory, None)

    def link(self) -> None:
        return None

    def close(self) -> None:
        self.memories.clear()

    def _memory(self, name: str) -> Observation:
        if name not in self.memories:
            raise InvalidRequest(f"no memory '{name}'")
        return self.memories[name]


if __name__ == '__main__':
    from mirage_ros.node import main

    options = {
        name[8:].lower(): value
        for name, value in os.environ.items()
        if name.startswith('INSTANT_')
    }
    numbers = {
        name: float(value) if '.' in value else int(value) for name, value in options.items()
    }
    sys.exit(
        main(
            lambda parameters: InstantEngine(
                allow_unscaled_depth=parameters.model.allow_unscaled_depth, **numbers
            )
        )
    )
