"""Convert chunks, scores, memories and colours to NumPy."""

from __future__ import annotations

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras
from mirage_model.engine.session import Session
from mirage_model.interface import (
    IMAGINED,
    NOTHING,
    OBSERVED,
    CandidatesRequest,
    Chunk,
    CoverageScore,
    ImagineRequest,
)
from mirage_model.memory import Memory
from mirage_model.memory.coverage import Coverage
from mirage_model.model.checkpoint import Model
from mirage_model.model.codec import Codec
from mirage_model.model.rollout import GeneratedChunk, on_latent_grid


def to_chunk(
    generated: GeneratedChunk,
    *,
    model: Model,
    request: ImagineRequest | CandidatesRequest,
    index: int,
    count: int,
    seed: int,
    session: Session,
    memory_frames: np.ndarray | None,
    seconds: float,
) -> Chunk:
    """Return a chunk of a request that began at ``session``; its mask has the frames' size."""
    readout = generated.readout
    mask = torch.full(readout.visible.shape, NOTHING, dtype=torch.uint8)
    mask[readout.visible.cpu()] = IMAGINED
    mask[readout.observed.cpu()] = OBSERVED
    stride = model.codec.spatial_stride
    return Chunk(
        request_id=request.request_id,
        index=index,
        count=count,
        frames=to_uint8(generated.frames),
        visibility=mask.repeat_interleave(stride, 1).repeat_interleave(stride, 2).numpy(),
        visible=readout.visible.flatten(1).float().mean(dim=1).cpu().numpy(),
        observed=readout.observed.flatten(1).float().mean(dim=1).cpu().numpy(),
        K=generated.cameras.K[0].cpu().double().numpy(),
        world_from_camera=generated.cameras.world_from_camera.cpu().double().numpy(),
        times=generated.cameras.times.cpu().numpy(),
        memory_frames=memory_frames,
        depth_source=session.depth_source,
        observation_time=float(session.camera.times[0]),
        model=model.config.name,
        seed=seed,
        seconds=seconds,
        prompt=request.prompt,
        stages=generated.stages,
        refinement=generated.refinement,
    )


def decode_memory(memory: Memory, cameras: Cameras, model: Model) -> np.ndarray:
    """Return the memory's latents decoded without the model, (n, H, W, 3) uint8.

    Grey where empty.
    """
    readout = memory.readout(on_latent_grid(cameras, model))
    frames = model.codec.decode_images(readout.latents).clamp(0, 1)
    stride = model.codec.spatial_stride
    visible = readout.visible.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return to_uint8(torch.where(visible[:, None], frames, 0.5))


def to_score(coverage: Coverage, threshold: float) -> CoverageScore:
    """Return the coverage of a path and where it falls below ``threshold``."""
    in_view = coverage.visible > 0
    weight = coverage.visible.where(in_view, 0.0)
    return CoverageScore(
        visible=coverage.visible.cpu().numpy(),
        observed=coverage.observed.cpu().numpy(),
        age=coverage.age.where(in_view, torch.nan).cpu().numpy(),
        mean_age=float((coverage.age * weight).sum() / weight.sum()),
        visible_ends=_first_index(coverage.visible < threshold),
        observed_ends=_first_index(coverage.observed < threshold),
    )


def to_uint8(frames: Float[Tensor, 'n 3 H W']) -> np.ndarray:
    """Return (n, H, W, 3) uint8 from frames in 0..1."""
    return (frames * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _first_index(mask: Tensor) -> int | None:
    indices = mask.nonzero()
    return int(indices[0]) if len(indices) else None


def fit_colours(codec: Codec, height: int, width: int) -> Float[Tensor, 'terms 3']:
    """Fit the linear map from the latents of a cell, with a 1 appended, to its mean colour in
    0..1.

    The fit uses random images with detail at several scales, so it depends on the codec alone.
    """
    generator = torch.Generator().manual_seed(0)
    frames = torch.zeros(8, 3, height, width)
    for cells in (1, 2, 4, 8, 16):
        noise = torch.rand(8, 3, cells, cells, generator=generator)
        frames += F.interpolate(noise, (height, width), mode='bilinear') / 5
    frames = ((frames - 0.5) * 2.5 + 0.5).clamp(0, 1).to(codec.device)
    latents = codec.encode_images(frames)
    size = (latents.shape[2], latents.shape[3])
    colours = F.adaptive_avg_pool2d(frames, size).movedim(1, -1).reshape(-1, 3)
    inputs = _append_one(latents.movedim(1, -1).flatten(0, 2).cpu())
    return torch.linalg.lstsq(inputs, colours.cpu()).solution


def latent_colours(
    latents: Float[Tensor, 'm c'], colour_from_latents: Float[Tensor, 'terms 3']
) -> np.ndarray:
    """Return (m, 3) RGB uint8 colours by the map of `fit_colours`."""
    colours = _append_one(latents) @ colour_from_latents
    return (colours.clamp(0, 1) * 255).round().byte().numpy()


def _append_one(latents: Float[Tensor, 'm c']) -> Float[Tensor, 'm terms']:
    return F.pad(latents, (0, 1), value=1.0)
