"""Imagine along paths, chunk by chunk, each on a memory that grows with what was imagined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import logging
import time

from jaxtyping import Float
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras, concatenate, rays, resized
from mirage_model.memory import Memory, Readout
from mirage_model.model.checkpoint import Model
from mirage_model.model.sampler import sample_chunk
from mirage_model.model.side_branch import side_input
from mirage_model.perception.refine import refine
from mirage_model.write_filter import write_frames

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One path: the frame and camera that it starts from, its memory and its random numbers."""

    memory: Memory
    frame: Float[Tensor, '1 3 H W']
    camera: Cameras
    cameras: Cameras
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class ImaginedChunk:
    """New frames in 0..1, their cameras, and what the memory held at each before it was imagined.

    ``remembered`` is without latents. ``stages`` are seconds by name: read, denoise, decode, and
    remember, that of the chunk before; what branches did together is shared out evenly.
    """

    frames: Float[Tensor, 'n 3 H W']
    cameras: Cameras
    remembered: Readout
    stages: Mapping[str, float]


def rollout(
    model: Model,
    memory: Memory,
    context_frame: Float[Tensor, '1 3 H W'],
    context_camera: Cameras,
    cameras: Cameras,
    *,
    steps: int,
    generator: torch.Generator,
    refine_cameras: bool = False,
    write_last: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[ImaginedChunk]:
    """Yield the frames that ``cameras`` see, the path's start being ``context_frame``: `rollouts` of one."""
    branch = Branch(
        memory=memory,
        frame=context_frame,
        camera=context_camera,
        cameras=cameras,
        generator=generator,
    )
    chunks = rollouts(
        model,
        [branch],
        steps=steps,
        refine_cameras=refine_cameras,
        write_last=write_last,
        cancelled=cancelled,
    )
    for _, chunk in chunks:
        yield chunk


@torch.no_grad()
def rollouts(
    model: Model,
    branches: Sequence[Branch],
    *,
    steps: int,
    refine_cameras: bool = False,
    write_last: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, ImaginedChunk]]:
    """Yield a branch's place and chunk: a chunk of each, in their order, before the next of any.

    Branches are denoised together, and otherwise one after the other. A branch's memory is written
    to as it goes, after a chunk was handed out and before the next is begun; after its last one only
    with ``write_last``, and then when what comes next is asked for. A latent frame takes the
    camera of the last frame it stands for, for reading and for writing. With ``refine_cameras`` what
    was imagined is written where it was seen from, found by matching features, in place of where it
    was planned. Raises ValueError if a number of cameras is no multiple of the new frames of a
    chunk, and Cancelled within one denoising step.
    """
    for branch in branches:
        if len(branch.cameras) == 0 or len(branch.cameras) % model.new_frames:
            raise ValueError(
                f'{len(branch.cameras)} frames do not fit: '
                f'the count must be a multiple of {model.new_frames}'
            )
    contexts = [_Context.of(branch, model) for branch in branches]
    for start in range(0, max(len(branch.cameras) for branch in branches), model.new_frames):
        stop = start + model.new_frames
        going = [index for index, branch in enumerate(branches) if start < len(branch.cameras)]
        clock = _Clock(model.device)
        ahead = [_ahead(model, branches[i], contexts[i], start) for i in going]
        read = clock.lap() / len(going)
        latents = sample_chunk(
            model.backbone,
            model.scheduler,
            context=torch.cat([contexts[i].latents for i in going])[:, :, None],
            latent_frames=len(ahead[0].readout.visible),
            side=torch.cat([one.side for one in ahead]),
            text=model.text[None].expand(len(going), -1, -1),
            steps=steps,
            generator=[branches[i].generator for i in going],
            cancelled=cancelled,
        )
        denoise = clock.lap() / len(going)
        for row, index in enumerate(going):
            branch, one = branches[index], ahead[row]
            clock.lap()
            frames = model.codec.decode(latents[row : row + 1])[0, 1:].clamp(0, 1)
            decode = clock.lap()
            remembered = branch.memory.readout(on_grid(one.new, model), latents=False)
            stages = {
                'read': read + clock.lap(),
                'denoise': denoise,
                'decode': decode,
                'remember': contexts[index].seconds,
            }
            yield (
                index,
                ImaginedChunk(
                    frames=frames, cameras=one.new, remembered=remembered, stages=stages
                ),
            )
            if stop < len(branch.cameras) or write_last:
                contexts[index] = _remember(
                    model,
                    branch,
                    contexts[index],
                    one,
                    latents[row, :, 1:].movedim(1, 0),
                    frames,
                    refine_cameras=refine_cameras,
                )


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What a chunk goes on from, and the seconds that it took to remember."""

    latents: Float[Tensor, '1 c h w']
    frame: Float[Tensor, '1 3 H W']
    camera: Cameras
    seconds: float

    @classmethod
    def of(cls, branch: Branch, model: Model) -> _Context:
        clock = _Clock(model.device)
        latents = model.codec.encode_images(branch.frame)
        return cls(latents=latents, frame=branch.frame, camera=branch.camera, seconds=clock.lap())


@dataclass(frozen=True, kw_only=True)
class _Ahead:
    """What a branch is about to imagine, and what it is told: the readout and side of latent frames."""

    new: Cameras
    readout: Readout
    side: Float[Tensor, '1 s k h w']


def _ahead(model: Model, branch: Branch, context: _Context, start: int) -> _Ahead:
    new = branch.cameras[start : start + model.new_frames]
    chunk = concatenate([context.camera, new])
    latent_cameras = on_grid(chunk[:: model.codec.temporal_stride], model)
    readout = branch.memory.readout(latent_cameras)
    side = side_input(readout[None], rays(latent_cameras, latent_cameras[0])[None])
    return _Ahead(new=new, readout=readout, side=side)


def _remember(
    model: Model,
    branch: Branch,
    context: _Context,
    ahead: _Ahead,
    latents: Float[Tensor, 'k c h w'],
    frames: Float[Tensor, 'n 3 H W'],
    *,
    refine_cameras: bool,
) -> _Context:
    """Write what was imagined into the branch's memory; return what its next chunk goes on from.

    The latents are written as they are. The last frame alone is encoded: a chunk begins with a frame
    that nothing is before, and to a causal codec that is another thing than the last of a clip.
    """
    clock, stride = _Clock(model.device), model.codec.temporal_stride
    last_of_latent = frames[stride - 1 :: stride]
    seen = model.perception.estimate(
        last_of_latent, ahead.new[stride - 1 :: stride], ahead.readout[1:]
    )
    if refine_cameras:
        found = _refined(
            last_of_latent, seen.cameras, context.frame, context.camera, ahead.readout
        )
        seen = replace(seen, cameras=found)
    write_frames(
        branch.memory, last_of_latent, seen, codec=model.codec, observed=False, latents=latents
    )
    return _Context(
        latents=model.codec.encode_images(frames[-1:]),
        frame=frames[-1:],
        camera=ahead.new[-1:],
        seconds=clock.lap(),
    )


class _Clock:
    """Seconds between laps, of the device's work too."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = 0.0
        self.lap()

    def lap(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def _refined(
    frames: Float[Tensor, 'n 3 H W'],
    cameras: Cameras,
    context_frame: Float[Tensor, '1 3 H W'],
    context_camera: Cameras,
    readout: Readout,
) -> Cameras:
    """Cameras found from features that the frames share with the context, on the memory's depth."""
    depth = readout.depth[:1].masked_fill(~readout.visible[:1], torch.nan)
    depth = F.interpolate(depth[None], context_frame.shape[-2:], mode='nearest-exact')[0]
    found = refine(
        frames,
        cameras,
        reference_frames=context_frame,
        reference_depth=depth,
        reference_cameras=context_camera,
    )
    for index, reason in enumerate(found.reasons):
        if reason:
            _log.info('imagined frame %d keeps its planned camera: %s', index, reason)
    return found.cameras


def on_grid(cameras: Cameras, model: Model) -> Cameras:
    """Cameras of frames as those of the latent grid."""
    stride = model.codec.spatial_stride
    return resized(cameras, cameras.height // stride, cameras.width // stride)
