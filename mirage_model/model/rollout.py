"""Generate frames along camera paths: read the memory, denoise a chunk, write it back, repeat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import time

from jaxtyping import Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras, concatenate, resized
from mirage_model.interface import Cancelled
from mirage_model.memory import Memory, Readout
from mirage_model.model.checkpoint import Model
from mirage_model.model.conditioning import read_scene, side_input
from mirage_model.model.history import History, LatentFrames
from mirage_model.model.sampler import sample_chunk
from mirage_model.model.text import TextCondition
from mirage_model.perception.pose_refinement import near_plan, refine_to_memory
from mirage_model.write_filter import write_frames


@dataclass(frozen=True, kw_only=True)
class RolloutInput:
    """One camera path to generate frames along."""

    memory: Memory
    """Read for every chunk; generated chunks are written into it."""
    frame: Float[Tensor, '1 3 H W']
    """The frame that the path starts from, in 0..1."""
    camera: Cameras
    """The camera of ``frame``."""
    cameras: Cameras
    """The cameras of the frames to generate; a multiple of `Model.new_frames`."""
    generator: torch.Generator
    """Source of the noise, on the CPU."""
    depth: Float[Tensor, '1 H W'] | None = None
    """Depth of ``frame`` [m]; infinite in the sky, NaN where it is unknown. None if none is known.
    """


@dataclass(frozen=True, kw_only=True)
class GeneratedChunk:
    """The new frames of a chunk."""

    frames: Float[Tensor, 'n 3 H W']
    """In 0..1."""
    cameras: Cameras
    """The planned cameras of ``frames``."""
    refinement: tuple[str, ...]
    """For each latent frame of the chunk before: why it keeps its planned camera, or '' where its
    camera was found. Empty without re-estimation."""
    readout: Readout
    """The memory at ``cameras`` before the chunk was generated; without latents."""
    stages: Mapping[str, float]
    """Seconds of read, denoise and decode, and of the write of the chunk before.

    Paths share the time of a batched step evenly.
    """


def rollout(
    model: Model,
    memory: Memory,
    context_frame: Float[Tensor, '1 3 H W'],
    context_camera: Cameras,
    cameras: Cameras,
    *,
    steps: int,
    generator: torch.Generator,
    context_depth: Float[Tensor, '1 H W'] | None = None,
    text: TextCondition | None = None,
    refine_cameras: bool = False,
    write_last: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[GeneratedChunk]:
    """Yield the chunks of one path; see `rollouts`."""
    path = RolloutInput(
        memory=memory,
        frame=context_frame,
        depth=context_depth,
        camera=context_camera,
        cameras=cameras,
        generator=generator,
    )
    chunks = rollouts(
        model,
        [path],
        steps=steps,
        text=text,
        refine_cameras=refine_cameras,
        write_last=write_last,
        cancelled=cancelled,
    )
    for _, chunk in chunks:
        yield chunk


@torch.no_grad()
def rollouts(
    model: Model,
    paths: Sequence[RolloutInput],
    *,
    steps: int,
    text: TextCondition | None = None,
    refine_cameras: bool = False,
    write_last: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, GeneratedChunk]]:
    """Yield (index of the path, chunk): chunk k of all paths in order, then chunk k + 1.

    All paths are denoised in one batch; reading, decoding and writing go path by path. Latent
    frame k is read and written at the camera of the last frame that it stands for. A chunk is
    written into its memory when the caller asks for the next item.

    Args:
        steps: Denoising steps of a chunk; without effect in a model without a transformer.
        text: Prompt and guidance of all paths; None takes the model's own text.
        refine_cameras: Write generated frames at cameras estimated from matched features instead
            of the planned ones.
        write_last: Write the last chunk of a path too.
        cancelled: Polled before each denoising step, or before each chunk without a transformer.

    Raises:
        ValueError: The number of cameras is not a multiple of `Model.new_frames`.
        Cancelled: ``cancelled()`` returned true.
    """
    for path in paths:
        if len(path.cameras) == 0 or len(path.cameras) % model.new_frames:
            raise ValueError(
                f'cameras: {len(path.cameras)} do not fill whole chunks, '
                f'the count must be a multiple of {model.new_frames}'
            )
    text = text or TextCondition(text=model.text)
    contexts = [_encode_context(model, path.frame, path.depth, path.camera) for path in paths]
    histories = [History() for _ in paths]
    for start in range(0, max(len(path.cameras) for path in paths), model.new_frames):
        stop = start + model.new_frames
        active = [index for index, path in enumerate(paths) if start < len(path.cameras)]
        clock = _Clock(model.device)
        conditions = [
            _read_memory(
                model, paths[i].memory, contexts[i], paths[i].cameras[start:stop], histories[i]
            )
            for i in active
        ]
        read_seconds = clock.lap() / len(active)
        latents = _denoise(
            model,
            [contexts[i] for i in active],
            conditions,
            [paths[i].generator for i in active],
            text=text,
            steps=steps,
            cancelled=cancelled,
        )
        denoise_seconds = clock.lap() / len(active)
        for row, index in enumerate(active):
            path, condition = paths[index], conditions[row]
            clock.lap()
            frames = model.codec.decode(latents[row][None])[0, 1:].clamp(0, 1)
            decode_seconds = clock.lap()
            readout = path.memory.readout(on_latent_grid(condition.cameras, model), latents=False)
            stages = {
                'read': read_seconds + clock.lap(),
                'denoise': denoise_seconds,
                'decode': decode_seconds,
                'write': contexts[index].seconds,
            }
            refinement = contexts[index].refinement
            yield (
                index,
                GeneratedChunk(
                    frames=frames,
                    cameras=condition.cameras,
                    refinement=refinement,
                    readout=readout,
                    stages=stages,
                ),
            )
            if stop < len(path.cameras) or write_last:
                new_latents = latents[row][:, 1:].movedim(1, 0)
                if model.config.references or model.config.preceding:
                    histories[index].append(condition.frames(latents[row]))
                contexts[index] = _write_chunk(
                    model,
                    path.memory,
                    contexts[index],
                    condition,
                    new_latents,
                    frames,
                    refine_cameras=refine_cameras,
                )


@dataclass(frozen=True, kw_only=True)
class _Context:
    """The clean frame that a chunk begins with."""

    latents: Float[Tensor, '1 c h w']
    frame: Float[Tensor, '1 3 H W']
    depth: Float[Tensor, '1 H W'] | None
    camera: Cameras
    seconds: float
    """Time to encode the frame and to write the chunk before."""
    refinement: tuple[str, ...] = ()
    """Outcome of the re-estimation of cameras, as `GeneratedChunk.refinement`."""


@dataclass(frozen=True, kw_only=True)
class _Condition:
    """The inputs of a chunk from its memory and cameras."""

    cameras: Cameras
    """Cameras of the new frames."""
    readout: Readout
    """The memory at the latent frames, the context frame first; its latents are the first guess.
    """
    scene: Float[Tensor, 'k s h w']
    """Channels of `conditioning.read_scene`."""
    latent_cameras: Cameras
    """Cameras of the latent frames, on the latent grid."""
    side: Float[Tensor, '1 inputs video h w']
    """Input of the side branch, for the chunk and the preceding frames."""
    references: Float[Tensor, 'c r h w']
    preceding: Float[Tensor, 'c p h w']

    def frames(self, latents: Float[Tensor, 'c k h w']) -> LatentFrames:
        """Return the chunk's latent frames with the memory that they were generated from."""
        return LatentFrames(
            latents=latents.movedim(1, 0), scene=self.scene, cameras=self.latent_cameras
        )


def _encode_context(
    model: Model,
    frame: Float[Tensor, '1 3 H W'],
    depth: Float[Tensor, '1 H W'] | None,
    camera: Cameras,
    clock: _Clock | None = None,
) -> _Context:
    clock = clock or _Clock(model.device)
    latents = model.codec.encode_images(frame)
    return _Context(latents=latents, frame=frame, depth=depth, camera=camera, seconds=clock.lap())


def _read_memory(
    model: Model, memory: Memory, context: _Context, cameras: Cameras, history: History
) -> _Condition:
    frame_cameras = on_latent_grid(concatenate([context.camera, cameras]), model)
    latent_cameras = frame_cameras[:: model.codec.temporal_stride]
    kind, codec = model.side_input, model.codec
    readout, scene = read_scene(
        kind,
        memory,
        latent_cameras,
        context.latents,
        codec=codec,
        resampler=model.resampler,
        depth=context.depth,
        frame_cameras=frame_cameras,
    )
    references = history.references(model.config.references, memory, readout, latent_cameras)
    preceding = history.preceding(model.config.preceding)
    video, video_cameras = scene, latent_cameras
    if preceding is not None:
        video = torch.cat([scene, preceding.scene])
        video_cameras = concatenate([latent_cameras, preceding.cameras])
    none = context.latents[:0]
    return _Condition(
        cameras=cameras,
        readout=readout,
        scene=scene,
        latent_cameras=latent_cameras,
        side=side_input(kind, video, video_cameras, codec=codec),
        references=(none if references is None else references).movedim(1, 0),
        preceding=(none if preceding is None else preceding.latents).movedim(1, 0),
    )


def _denoise(
    model: Model,
    contexts: Sequence[_Context],
    conditions: Sequence[_Condition],
    generators: Sequence[torch.Generator],
    *,
    text: TextCondition,
    steps: int,
    cancelled: Callable[[], bool],
) -> list[Float[Tensor, 'c k h w']]:
    """Return the latents of a chunk of each path, its context frame first.

    Paths with equally many references and preceding frames are denoised in one batch.
    """
    if model.backbone is None or model.scheduler is None:
        if cancelled():
            raise Cancelled
        return [
            torch.cat(
                [context.latents[0][:, None], condition.readout.latents[1:].movedim(1, 0)], 1
            )
            for context, condition in zip(contexts, conditions, strict=True)
        ]
    batches: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, condition in enumerate(conditions):
        batches[condition.references.shape[1], condition.preceding.shape[1]].append(row)
    latents: dict[int, Tensor] = {}
    for rows in batches.values():
        batch = sample_chunk(
            model.backbone,
            model.scheduler,
            context=torch.cat([contexts[row].latents for row in rows])[:, :, None],
            latent_frames=len(conditions[rows[0]].latent_cameras),
            side=torch.cat([conditions[row].side for row in rows]),
            references=torch.stack([conditions[row].references for row in rows]),
            preceding=torch.stack([conditions[row].preceding for row in rows]),
            text=text.text.expand(len(rows), -1, -1),
            negative=None if text.negative is None else text.negative.expand(len(rows), -1, -1),
            guidance=text.guidance,
            steps=steps,
            generator=[generators[row] for row in rows],
            cancelled=cancelled,
        )
        latents.update(zip(rows, batch, strict=True))
    return [latents[row] for row in range(len(conditions))]


def _write_chunk(
    model: Model,
    memory: Memory,
    context: _Context,
    condition: _Condition,
    latents: Float[Tensor, 'k c h w'],
    frames: Float[Tensor, 'n 3 H W'],
    *,
    refine_cameras: bool,
) -> _Context:
    """Write a generated chunk into the memory and return the context of the next chunk.

    Re-estimated cameras are those that the frames are written at, and the next context's. The
    denoised latents are written as they are. The last frame is encoded again on its own, since
    a causal codec encodes the first frame of a clip differently from the last.
    """
    clock, stride = _Clock(model.device), model.codec.temporal_stride
    last_of_latent = frames[stride - 1 :: stride]
    planned = condition.cameras[stride - 1 :: stride]
    estimate = model.perception.estimate(last_of_latent, planned, condition.readout[1:])
    cameras = planned
    refinement: tuple[str, ...] = ()
    if refine_cameras:
        if model.perception.estimates_cameras:
            refined = near_plan(estimate.cameras, planned)
        else:
            refined = refine_to_memory(
                last_of_latent, planned, context.frame, context.camera, condition.readout[:1]
            )
        cameras, refinement = refined.cameras, refined.reasons
    estimate = replace(estimate, cameras=cameras)
    write_frames(
        memory, last_of_latent, estimate, codec=model.codec, observed=False, latents=latents
    )
    depth = estimate.depth_with_sky()[-1:]
    after = _encode_context(model, frames[-1:], depth, cameras[-1:], clock)
    return replace(after, refinement=refinement)


class _Clock:
    """Seconds between laps, the device's queued work included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = 0.0
        self.lap()

    def lap(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def on_latent_grid(cameras: Cameras, model: Model) -> Cameras:
    """Return the cameras of frames at the size of the latent grid."""
    stride = model.codec.spatial_stride
    return resized(cameras, cameras.height // stride, cameras.width // stride)
