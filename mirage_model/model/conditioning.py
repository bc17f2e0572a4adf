"""The input of the side branch, of each kind: what a chunk takes from the memory.

- 'mirage': latents, masks, offset and depth ratio of the readout, and camera rays.
- 'official', of the paper's published training code: the readout's latents, and the latents of a
  white video.
- 'spatia', of Spatia: the latents of a rendered video, and those of a video of its holes.
"""

from __future__ import annotations

from jaxtyping import Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras, rays
from mirage_model.memory import Memory, Readout
from mirage_model.memory.baselines.rgb_cloud import RgbCloud
from mirage_model.model.codec import Codec
from mirage_model.model.resampler import Resampler, read_first_guess
from mirage_model.model.side_branch import SideInput


def read_scene(
    kind: SideInput,
    memory: Memory,
    cameras: Cameras,
    context: Float[Tensor, '1 c h w'],
    *,
    codec: Codec,
    resampler: Resampler | None,
    depth: Float[Tensor, '1 H W'] | None = None,
    frame_cameras: Cameras | None = None,
) -> tuple[Readout, Float[Tensor, 'k s h w']]:
    """Return the memory at the latent frames of a chunk, and its channels of the side input.

    Args:
        cameras: Cameras of the latent frames on the latent grid, the context frame's first.
        context: Latents of the context frame.
        depth: Depth of the context frame, as in `reproject`.
        frame_cameras: Cameras of all frames on the latent grid, which input 'spatia' renders.
    """
    if kind == 'spatia':
        assert isinstance(memory, RgbCloud), 'input spatia renders the points of an RGB cloud'
        assert frame_cameras is not None, 'input spatia renders all frames'
        readout = memory.readout(cameras, latents=False)
        frames, covered = memory.rendered(frame_cameras)
        # the codec takes 0.5 to 0 and 1 to 1: Spatia's holes are 1, what is covered is 0
        holes = torch.where(covered[:, None], 0.5, 1.0).expand_as(frames)
        scene = [codec.encode(video[None])[0].movedim(1, 0) for video in (frames, holes)]
        return readout, torch.cat(scene, dim=1)
    readout = read_first_guess(resampler, memory, cameras, context, depth)
    if kind == 'official':
        return readout, readout.latents
    return readout, readout_channels(readout)


def readout_channels(readout: Readout) -> Float[Tensor, '*n s h w']:
    """Return the channels of input 'mirage' that come from a readout."""
    channels = (
        readout.latents,
        readout.visible[..., None, :, :].float(),
        readout.observed[..., None, :, :].float(),
        readout.offset,
        readout.depth_ratio[..., None, :, :],
    )
    return torch.cat(channels, dim=-3)


def side_input(
    kind: SideInput, scene: Float[Tensor, 'k s h w'], cameras: Cameras, *, codec: Codec
) -> Float[Tensor, '1 c k h w']:
    """Return the input of the side branch.

    Args:
        scene: Channels of `read_scene`; those of preceding frames follow the chunk's.
        cameras: Their cameras on the latent grid, the context frame's first.
    """
    channels = [scene]
    if kind == 'mirage':
        channels.append(rays(cameras, cameras[0]))
    elif kind == 'official':
        white = codec.encode_white(len(scene), cameras.height, cameras.width)
        channels.append(white[0].movedim(1, 0).to(scene))
    return torch.cat(channels, dim=1).movedim(1, 0)[None]
