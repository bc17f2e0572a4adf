"""Generate several candidates from one session, in batches, until a deadline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import logging
import math
import time

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.engine.inputs import frame_from_image
from mirage_model.engine.latency import LatencyModel
from mirage_model.engine.outputs import to_chunk
from mirage_model.engine.session import (
    SCALES,
    Session,
    at_resolution,
    denoising_steps,
    target_cameras,
    text_condition,
)
from mirage_model.interface import Cancelled, Candidate, CandidatesRequest, Chunk, InvalidRequest
from mirage_model.model.checkpoint import Model
from mirage_model.model.rollout import rollouts

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Path:
    """One path of a request."""

    index: int
    cameras: Cameras
    seed: int


def generate_candidates(
    model: Model,
    session: Session,
    request: CandidatesRequest,
    *,
    latency: LatencyModel,
    refine_cameras: bool,
    cancelled: Callable[[], bool],
) -> Iterator[Candidate]:
    """Yield candidates in order, a batch at a time; see `EngineProtocol.imagine_candidates`.

    The batch is halved when the device runs out of memory. Chunks are timed into ``latency``.
    """
    seconds = math.inf if request.deadline is None else request.deadline
    deadline = time.monotonic() + seconds
    session = at_resolution(session, model, request.resolution)
    waiting = _checked_paths(request, session, model)
    goal = None if request.goal is None else _encode_image(request.goal, session, model)
    batch = request.batch
    while waiting:
        paths = waiting[:batch]
        try:
            results = _generate_batch(
                model,
                session,
                request,
                paths,
                deadline,
                latency=latency,
                refine_cameras=refine_cameras,
                cancelled=cancelled,
            )
        except torch.OutOfMemoryError:
            if len(paths) == 1:
                raise
            batch = len(paths) // 2
            _log.warning('out of memory with %d candidates in a batch: now %d', len(paths), batch)
            continue
        waiting = waiting[batch:]
        for path, chunks in zip(paths, results, strict=True):
            distance = math.nan
            if goal is not None and chunks:
                last = _encode_image(chunks[-1].frames[-1], session, model)
                distance = float((last - goal).square().mean().sqrt())
            yield Candidate(
                index=path.index,
                chunks=tuple(chunks),
                complete=bool(chunks) and len(chunks) == chunks[-1].count,
                goal_distance=distance,
            )


def _checked_paths(request: CandidatesRequest, session: Session, model: Model) -> list[_Path]:
    if not request.trajectories or len(request.seeds) != len(request.trajectories):
        raise InvalidRequest(
            f'seeds: {len(request.seeds)} for {len(request.trajectories)} trajectories, '
            'at least one trajectory and one seed for each are needed'
        )
    if request.batch < 1:
        raise InvalidRequest(f'batch: {request.batch} is too small, at least 1 is needed')
    denoising_steps(request.steps, model)
    text_condition(request, model)
    paths = []
    for index, (path, seed) in enumerate(zip(request.trajectories, request.seeds, strict=True)):
        try:
            cameras = target_cameras(session, model, path.world_from_camera, path.times, request.K)
        except InvalidRequest as error:
            raise InvalidRequest(f'candidate {index}: {error}') from None
        paths.append(_Path(index=index, cameras=cameras, seed=seed))
    return paths


def _generate_batch(
    model: Model,
    session: Session,
    request: CandidatesRequest,
    paths: Sequence[_Path],
    deadline: float,
    *,
    latency: LatencyModel,
    refine_cameras: bool,
    cancelled: Callable[[], bool],
) -> list[list[Chunk]]:
    """Return the chunks of each path that exist at the deadline."""
    results: list[list[Chunk]] = [[] for _ in paths]
    if time.monotonic() >= deadline:
        return results
    steps, text = denoising_steps(request.steps, model), text_condition(request, model)
    inputs = [session.rollout_input(session.memory.fork(), p.cameras, p.seed) for p in paths]
    generated = rollouts(
        model,
        inputs,
        steps=steps,
        text=text,
        refine_cameras=refine_cameras,
        write_last=False,
        cancelled=lambda: cancelled() or time.monotonic() >= deadline,
    )
    try:
        for row, chunk in generated:
            scale = SCALES[request.resolution]
            latency.update(scale, len(paths), steps=steps * text.calls, stages=chunk.stages)
            results[row].append(
                to_chunk(
                    chunk,
                    model=model,
                    request=request,
                    index=len(results[row]),
                    count=len(paths[row].cameras) // model.new_frames,
                    seed=paths[row].seed,
                    session=session,
                    memory_frames=None,
                    seconds=sum(chunk.stages.values()),
                )
            )
            if time.monotonic() >= deadline:
                break
    except Cancelled:
        if cancelled():
            raise
    return results


def _encode_image(image: np.ndarray, session: Session, model: Model) -> Float[Tensor, '1 c h w']:
    """Return the latents of an image, cropped and scaled to the frames of the session."""
    frame = frame_from_image(image, session.camera.height, session.camera.width)
    return model.codec.encode_images(frame.to(model.device))
