"""Imagine along a path, chunk by chunk, on a memory that grows with what was imagined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
import logging

from jaxtyping import Float
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras, concatenate, rays, resized
from mirage_model.checkpoint import Model
from mirage_model.memory import Memory, Readout
from mirage_model.perception.refine import refine
from mirage_model.remember import keep_mask, mean_in_cell, pixels_of
from mirage_model.sampler import sample_chunk
from mirage_model.side_branch import side_input

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImaginedChunk:
    """New frames in 0..1, their cameras, and what the memory held at each before it was imagined.

    ``remembered`` is without latents.
    """

    frames: Float[Tensor, 'n 3 H W']
    cameras: Cameras
    remembered: Readout


@torch.no_grad()
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
    remember_last: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[ImaginedChunk]:
    """Yield the frames that ``cameras`` see, the path's start being ``context_frame``.

    ``memory`` is written to as the rollout goes, after a chunk was handed out and before the next
    is begun; after the last one only with ``remember_last``, and then when the generator is
    exhausted. A latent frame takes the camera of the last frame it stands for, for reading and for
    writing. With ``refine_cameras`` what was imagined is written where it was seen from, found by
    matching features, in place of where it was planned. Raises ValueError if the number of cameras
    is no multiple of the new frames of a chunk, and Cancelled within one denoising step.
    """
    if len(cameras) == 0 or len(cameras) % model.new_frames:
        raise ValueError(
            f'{len(cameras)} frames do not fit: the count must be a multiple of {model.new_frames}'
        )
    stride = model.codec.temporal_stride
    context = model.codec.encode_stills(context_frame)
    for start in range(0, len(cameras), model.new_frames):
        new = cameras[start : start + model.new_frames]
        chunk = concatenate([context_camera, new])
        latent_cameras = _on_grid(chunk[::stride], model)
        readout = memory.readout(latent_cameras)
        latents = sample_chunk(
            model.backbone,
            model.scheduler,
            context=context[:, :, None],
            latent_frames=len(latent_cameras),
            side=side_input(readout[None], rays(latent_cameras, latent_cameras[0])[None]),
            text=model.text[None],
            steps=steps,
            generator=generator,
            cancelled=cancelled,
        )
        frames = model.codec.decode(latents)[0, 1:].clamp(0, 1)
        remembered = memory.readout(_on_grid(new, model), latents=False)
        yield ImaginedChunk(frames=frames, cameras=new, remembered=remembered)
        if start + model.new_frames == len(cameras) and not remember_last:
            return

        last_of_latent = frames[stride - 1 :: stride]
        seen = model.perception.estimate(last_of_latent, new[stride - 1 :: stride], readout[1:])
        if refine_cameras:
            found = _refined(last_of_latent, seen.cameras, context_frame, chunk[:1], readout)
            seen = replace(seen, cameras=found)
        grid = _on_grid(seen.cameras, model)
        depth, keep = keep_mask(seen, height=grid.height, width=grid.width)
        encoded = last_of_latent if memory.takes_latents else last_of_latent[-1:]
        stills = model.codec.encode_stills(encoded)
        memory.write(
            stills if memory.takes_latents else None,
            depth,
            grid,
            keep=keep,
            observed=False,
            confidence=mean_in_cell(seen.confidence, depth),
            pixels=pixels_of(last_of_latent, seen),
        )
        context, context_frame, context_camera = stills[-1:], frames[-1:], new[-1:]


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


def _on_grid(cameras: Cameras, model: Model) -> Cameras:
    stride = model.codec.spatial_stride
    return resized(cameras, cameras.height // stride, cameras.width // stride)
