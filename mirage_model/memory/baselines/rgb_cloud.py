"""An RGB point cloud, rendered and encoded again for every view: Spatia, GEN3C, Voyager."""

from __future__ import annotations

import copy

from jaxtyping import Bool, Float, Int, UInt8
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, unproject
from mirage_model.memory import Encoder, Pixels, Readout
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.baselines.pixels import at_pixels, checked, on_a_surface
from mirage_model.memory.baselines.point_cloud import PointCloud
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.visibility import Points, Views, seen_through

VOXEL = 1.0
"""Edge of a voxel as a share of a pixel's size."""

SPLAT = 3
"""Pixels, along a side, that a point may cover: as many as its size asks for."""


class RgbCloud:
    """A point for every pixel, as 23 bytes: position and size, when it was seen, colour.

    An observation first removes the points that it sees through, and takes the place of those in
    its voxels; an imagined pixel enters only where its camera is shown nothing, or an imagined
    point more than ``finer`` times its size, which is dropped after the write if it lies before
    the new one. A readout renders frames with a z-buffer and encodes
    each alone. A cell is visible where at least half of its pixels are covered, observed where
    sensors saw at least half; depth, age and depth ratio are those of the pixel of median depth,
    and the offset is zero, since colours were moved pixel by pixel.
    """

    takes_latents = False

    def __init__(self, config: MemoryConfig, encoder: Encoder) -> None:
        self.config = config
        self._encoder = encoder
        self._rule = config.rule(splat_size=SPLAT)
        self._cloud = PointCloud(values=3, dtype=np.dtype(np.uint8), voxel=VOXEL)
        # of the cameras that wrote
        self._times: list[float] = []
        self._focal: list[float] = []

    def __len__(self) -> int:
        return len(self._cloud)

    @property
    def nbytes(self) -> int:
        return self._cloud.nbytes

    @property
    def index_nbytes(self) -> int:
        return self._cloud.index_nbytes

    def fork(self) -> RgbCloud:
        branch = copy.copy(self)
        branch._cloud = self._cloud.copy()
        branch._times, branch._focal = self._times.copy(), self._focal.copy()
        return branch

    @torch.no_grad()
    def write(
        self,
        latents: Float[Tensor, 'n c h w'] | None,
        depth: Float[Tensor, 'n h w'],
        cameras: Cameras,
        *,
        valid: Bool[Tensor, 'n h w'],
        observed: bool,
        confidence: Float[Tensor, 'n h w'] | None = None,
        pixels: Pixels | None = None,
    ) -> int:
        """As `Memory.write`, of ``pixels`` alone; those on either side of a depth edge are left out."""
        pixels, cameras = checked(pixels, cameras, self._encoder.spatial_stride)
        take = on_a_surface(pixels.depth) & (pixels.depth < self.config.far)
        if observed:
            self._see_through(pixels, cameras)
        added, gone = 0, np.zeros(len(self), np.bool_)
        for k in range(len(cameras)):
            camera, seen = cameras[k : k + 1], pixels.depth[k : k + 1]
            focal = float(camera.K[0, 0, 0] * camera.K[0, 1, 1]) ** 0.5
            kept = take[k]
            if not observed:
                room, hiding = self._open_to_imagination(camera, seen, focal)
                kept = kept & room[0]
            position = unproject(torch.where(kept, seen, 1.0), camera)[0, kept]
            points = torch.cat([position, (seen[0, kept] / focal)[:, None]], dim=1)
            colours = (pixels.frames[k].clamp(0, 1) * 255).round().byte().movedim(0, -1)[kept]
            rows, entered = self._cloud.insert(
                points.float().numpy(), colours.numpy(), stamp=len(self._times), observed=observed
            )
            # only an observation can take a voxel twice
            added += len(np.unique(rows[entered])) if observed else int(entered.sum())
            if not observed:
                dropped = hiding[0, kept.numpy()][entered]
                gone = np.pad(gone, (0, len(self) - len(gone)))
                gone[dropped[dropped >= 0]] = True
            self._times.append(float(camera.times[0]))
            self._focal.append(focal)
        if gone.any():
            self._cloud.remove(gone)
        return added

    @torch.no_grad()
    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        """As `Memory.readout`."""
        if not len(self):
            return NoMemory(self._encoder.channels).readout(cameras, latents=latents)
        device, stride = cameras.K.device, self._encoder.spatial_stride
        grid = (len(cameras), cameras.height, cameras.width)
        cameras = cameras.to('cpu')
        pixel, depth = self.render(at_pixels(cameras, stride))
        visible = _in_cells(pixel >= 0, stride).float().mean(dim=-1) >= 0.5
        sensed = torch.from_numpy(self._cloud.observed(pixel.numpy())) & (pixel >= 0)
        observed = _in_cells(sensed, stride).float().mean(dim=-1) >= 0.5
        depth, middle = _in_cells(depth, stride).nanmedian(dim=-1)
        row = _in_cells(pixel, stride).gather(-1, middle[..., None])[..., 0]
        row = row[visible].numpy()
        stamp, size = self._cloud.stamps(row), self._cloud.points[row, 3]
        seconds, ratio = torch.zeros(grid, dtype=torch.float64), torch.ones(grid)
        seconds[visible] = torch.from_numpy(np.array(self._times)[stamp])
        written = torch.from_numpy(size * np.array(self._focal, np.float32)[stamp])
        ratio[visible] = depth[visible] / written
        age = (cameras.times.double()[:, None, None] - seconds).float()
        return Readout(
            latents=self._encoded(pixel, visible, device)
            if latents
            else torch.zeros(grid[0], 0, *grid[1:], device=device),
            visible=visible.to(device),
            observed=observed.to(device),
            depth=torch.where(visible, depth, 0.0).to(device),
            age=torch.where(visible, age, 0.0).to(device),
            offset=torch.zeros(grid[0], 2, *grid[1:], device=device),
            depth_ratio=ratio.log().to(device),
        )

    def render(self, cameras: Cameras) -> tuple[Int[Tensor, 'n H W'], Float[Tensor, 'n H W']]:
        """The point that each pixel of cameras at the resolution of frames sees, or -1, and its
        depth, or NaN.
        """
        row, depth = self._cloud.nearest(Views.of(cameras), self._rule)
        return torch.from_numpy(row), torch.from_numpy(depth)

    def colours(self, pixel: Int[Tensor, 'n H W']) -> UInt8[Tensor, 'n 3 H W']:
        """The colours of rendered points, grey where there is none."""
        palette = np.append(self._cloud.values, np.full((1, 3), 128, np.uint8), axis=0)
        return torch.from_numpy(palette[pixel.numpy()]).movedim(-1, 1)  # -1 is the last

    def _encoded(
        self, pixel: Int[Tensor, 'n H W'], visible: Bool[Tensor, 'n h w'], device
    ) -> Float[Tensor, 'n c h w']:
        """Latents of the frames in which anything is visible, zero in the cells where it is not."""
        n, h, w = visible.shape
        latents = torch.zeros(n, self._encoder.channels, h, w, device=device)
        some = visible.flatten(1).any(dim=1)
        if some.any():
            frames = self.colours(pixel[some]).to(device).float() / 255
            latents[some.to(device)] = self._encoder.encode_images(frames)
        return latents * visible[:, None].to(device)

    def _see_through(self, pixels: Pixels, cameras: Cameras) -> None:
        cloud = self._cloud
        points = Points(
            position=torch.from_numpy(cloud.points[:, :3]),
            size=torch.from_numpy(cloud.points[:, 3].copy()),
            observed=torch.from_numpy(cloud.observed(np.arange(len(cloud)))),
        )
        gone = seen_through(points, pixels.depth, Views.of(cameras), self._rule)
        if gone.any():
            cloud.remove(gone.numpy())

    def _open_to_imagination(
        self, camera: Cameras, seen: Float[Tensor, '1 H W'], focal: float
    ) -> tuple[Bool[Tensor, '1 H W'], Int[np.ndarray, '1 H W']]:
        """Where a camera is shown nothing, or what was imagined too coarsely; and the too coarse
        points before what it has ``seen``, or -1.
        """
        if not len(self):
            return torch.ones_like(seen, dtype=torch.bool), np.full(seen.shape, -1)
        row, depth = self._cloud.nearest(Views.of(camera), self._rule)
        coarse = self._cloud.points[row, 3] > self.config.finer * (seen / focal).numpy()
        coarse &= (row >= 0) & ~self._cloud.observed(row)
        hiding = np.where(coarse & (depth < seen.numpy()), row, -1)
        return torch.from_numpy((row < 0) | coarse), hiding


def _in_cells(values: Tensor, stride: int) -> Tensor:
    """(n, h * stride, w * stride) to (n, h, w, stride * stride)."""
    cells = values.unflatten(1, (-1, stride)).unflatten(3, (-1, stride))
    return cells.transpose(2, 3).flatten(3)
