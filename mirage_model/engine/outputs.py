"""What goes out: chunks, scores and pictures as plain NumPy."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras
from mirage_model.interface import IMAGINED, NOTHING, OBSERVED, Chunk, CoverageScore, DepthSource
from mirage_model.memory import Memory
from mirage_model.memory.coverage import Coverage
from mirage_model.model.checkpoint import Model
from mirage_model.model.codec import Codec
from mirage_model.model.rollout import GeneratedChunk, on_latent_grid


def chunk_of(
    imagined: GeneratedChunk,
    *,
    model: Model,
    request_id: str,
    index: int,
    count: int,
    seed: int,
    depth_source: DepthSource,
    memory_frames: np.ndarray | None,
    seconds: float,
) -> Chunk:
    readout = imagined.readout
    mask = torch.full(readout.visible.shape, NOTHING, dtype=torch.uint8)
    mask[readout.visible.cpu()] = IMAGINED
    mask[readout.observed.cpu()] = OBSERVED
    stride = model.codec.spatial_stride
    return Chunk(
        request_id=request_id,
        index=index,
        count=count,
        frames=to_uint8(imagined.frames),
        visibility=mask.repeat_interleave(stride, 1).repeat_interleave(stride, 2).numpy(),
        visible=readout.visible.flatten(1).float().mean(dim=1).cpu().numpy(),
        observed=readout.observed.flatten(1).float().mean(dim=1).cpu().numpy(),
        K=imagined.cameras.K[0].cpu().double().numpy(),
        world_from_camera=imagined.cameras.world_from_camera.cpu().double().numpy(),
        times=imagined.cameras.times.cpu().numpy(),
        memory_frames=memory_frames,
        depth_source=depth_source,
        model=model.config.name,
        seed=seed,
        seconds=seconds,
        stages=imagined.stages,
    )


def last_frame_of(chunk: Chunk) -> Chunk:
    """The chunk with its last frame alone."""
    per_frame = ('frames', 'visibility', 'visible', 'observed', 'world_from_camera', 'times')
    return replace(chunk, **{name: getattr(chunk, name)[-1:].copy() for name in per_frame})


def memory_frames(memory: Memory, cameras: Cameras, model: Model) -> np.ndarray:
    """The memory's latents decoded as they are, grey where it holds nothing."""
    readout = memory.readout(on_latent_grid(cameras, model))
    frames = model.codec.decode_images(readout.latents).clamp(0, 1)
    stride = model.codec.spatial_stride
    visible = readout.visible.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return to_uint8(torch.where(visible[:, None], frames, 0.5))


def score_of(coverage: Coverage, threshold: float) -> CoverageScore:
    seen = coverage.visible > 0
    weight = coverage.visible.where(seen, 0.0)
    return CoverageScore(
        visible=coverage.visible.cpu().numpy(),
        observed=coverage.observed.cpu().numpy(),
        age=coverage.age.where(seen, torch.nan).cpu().numpy(),
        mean_age=float((coverage.age * weight).sum() / weight.sum()),
        visible_ends=_first(coverage.visible < threshold),
        observed_ends=_first(coverage.observed < threshold),
    )


def to_uint8(frames: Float[Tensor, 'n 3 H W']) -> np.ndarray:
    """(n, 3, H, W) in 0..1 to (n, H, W, 3)."""
    return (frames * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _first(below: Tensor) -> int | None:
    where = below.nonzero()
    return int(where[0]) if len(where) else None


def fit_colours(codec: Codec, height: int, width: int) -> Float[Tensor, 'terms 3']:
    """The linear map from a cell's latents, and a 1 after them, to the mean colour of its pixels.

    Fitted to random pictures with detail of every size, so that it is the codec's alone.
    """
    generator = torch.Generator().manual_seed(0)
    frames = torch.zeros(8, 3, height, width)
    for cells in (1, 2, 4, 8, 16):
        noise = torch.rand(8, 3, cells, cells, generator=generator)
        frames += F.interpolate(noise, (height, width), mode='bilinear') / 5
    frames = ((frames - 0.5) * 2.5 + 0.5).clamp(0, 1).to(codec.device)
    latents = codec.encode_images(frames)
    colours = F.adaptive_avg_pool2d(frames, latents.shape[2:]).movedim(1, -1).reshape(-1, 3)
    inputs = _with_one(latents.movedim(1, -1).flatten(0, 2).cpu())
    return torch.linalg.lstsq(inputs, colours.cpu()).solution


def colours_of(
    latents: Float[Tensor, 'm c'], colour_from_latents: Float[Tensor, 'terms 3']
) -> np.ndarray:
    """RGB uint8 (m, 3) by the map of `fit_colours`."""
    colours = _with_one(latents) @ colour_from_latents
    return (colours.clamp(0, 1) * 255).round().byte().numpy()


def _with_one(latents: Float[Tensor, 'm c']) -> Float[Tensor, 'm terms']:
    return F.pad(latents, (0, 1), value=1.0)
