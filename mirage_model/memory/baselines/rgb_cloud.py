"""RGB point cloud, rendered and encoded for each readout, as in Spatia, GEN3C and Voyager."""

from __future__ import annotations

import copy

from jaxtyping import Bool, Float, Int, UInt8
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, unproject
from mirage_model.memory import Encoder, Pixels, Readout
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.baselines.pixels import at_pixels, check_pixels, off_depth_edges
from mirage_model.memory.baselines.point_cloud import PointCloud
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.visibility import CameraArrays, Splats, in_free_space

VOXEL = 1.0
"""Edge of a voxel as a multiple of a pixel's size."""

SPLAT = 3
"""Largest number of pixels across that a point covers."""


class RgbCloud:
    """A point of 23 bytes per pixel: position, size, stamp and colour.

    - An observation first removes the points in the free space that its cameras see, and replaces
      the points in its voxels.
    - An imagined pixel enters where nothing or only an imagined point ``finer`` times as coarse is
      visible. Such a point is removed if it would hide the new one.
    - A readout renders frames with a z-buffer and encodes each alone. A cell is visible if half of
      its pixels are covered, and observed if sensors took half of them. Depth, age and depth ratio
      are those of the pixel of median depth. The offset is zero, since colours are reprojected per
      pixel.
    """

    takes_latents = False

    def __init__(self, config: MemoryConfig, encoder: Encoder) -> None:
        self.config = config
        self._encoder = encoder
        self._rule = config.rule(splat_size=SPLAT)
        self._cloud = PointCloud(values=3, dtype=np.dtype(np.uint8), voxel=VOXEL)
        # of the cameras that wrote, by stamp
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
        """Write pixels off depth edges, as `Memory.write`."""
        pixels, cameras = check_pixels(pixels, cameras, self._encoder.spatial_stride)
        writable = off_depth_edges(pixels.depth) & (pixels.depth < self.config.far)
        if observed:
            self._clear_free_space(pixels, cameras)
        added, removed = 0, np.zeros(len(self), np.bool_)
        for k in range(len(cameras)):
            camera, frame_depth = cameras[k : k + 1], pixels.depth[k : k + 1]
            focal = float(camera.K[0, 0, 0] * camera.K[0, 1, 1]) ** 0.5
            entering = writable[k]
            hiding = None
            if not observed:
                open_pixels, hiding = self._open_to_imagination(camera, frame_depth, focal)
                entering = entering & open_pixels[0]
            position = unproject(torch.where(entering, frame_depth, 1.0), camera)[0, entering]
            points = torch.cat([position, (frame_depth[0, entering] / focal)[:, None]], dim=1)
            colours = (pixels.frames[k].clamp(0, 1) * 255).round().byte().movedim(0, -1)[entering]
            rows, entered = self._cloud.insert(
                points.float().numpy(), colours.numpy(), stamp=len(self._times), observed=observed
            )
            # several observed points may enter one voxel
            added += len(np.unique(rows[entered])) if observed else int(entered.sum())
            if hiding is not None:
                hidden_behind = hiding[0, entering.numpy()][entered]
                removed = np.pad(removed, (0, len(self) - len(removed)))
                removed[hidden_behind[hidden_behind >= 0]] = True
            self._times.append(float(camera.times[0]))
            self._focal.append(focal)
        if removed.any():
            self._cloud.remove(removed)
        return added

    @torch.no_grad()
    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        """Render the points, encode the frames, and return what the cameras see."""
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
        median_pixel = _in_cells(pixel, stride).gather(-1, middle[..., None])[..., 0]
        row = median_pixel[visible].numpy()
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

    def rendered(self, cameras: Cameras) -> tuple[Float[Tensor, 'n 3 H W'], Bool[Tensor, 'n H W']]:
        """Return frames in 0..1, black where there are no points, and which pixels have one.

        The cameras are on the latent grid.
        """
        pixel, _ = self.render(at_pixels(cameras.to('cpu'), self._encoder.spatial_stride))
        covered = (pixel >= 0).to(cameras.K.device)
        frames = self.colours(pixel).to(cameras.K.device).float() / 255
        return frames * covered[:, None], covered

    def render(self, cameras: Cameras) -> tuple[Int[Tensor, 'n H W'], Float[Tensor, 'n H W']]:
        """Return the point that each pixel sees, or -1, and its depth, or NaN.

        The cameras are at the resolution of frames.
        """
        row, depth = self._cloud.nearest(CameraArrays.from_cameras(cameras), self._rule)
        return torch.from_numpy(row), torch.from_numpy(depth)

    def colours(self, pixel: Int[Tensor, 'n H W']) -> UInt8[Tensor, 'n 3 H W']:
        """Return the colours of rendered points, grey where there are none."""
        palette = np.append(self._cloud.values, np.full((1, 3), 128, np.uint8), axis=0)
        return torch.from_numpy(palette[pixel.numpy()]).movedim(-1, 1)  # index -1 is grey

    def _encoded(
        self, pixel: Int[Tensor, 'n H W'], visible: Bool[Tensor, 'n h w'], device: torch.device
    ) -> Float[Tensor, 'n c h w']:
        """Return the latents of frames with visible cells, zero in the other cells."""
        n, h, w = visible.shape
        latents = torch.zeros(n, self._encoder.channels, h, w, device=device)
        covered = visible.flatten(1).any(dim=1)
        if covered.any():
            frames = self.colours(pixel[covered]).to(device).float() / 255
            latents[covered.to(device)] = self._encoder.encode_images(frames)
        return latents * visible[:, None].to(device)

    def _clear_free_space(self, pixels: Pixels, cameras: Cameras) -> None:
        """Remove the points in free space in front of observed pixels."""
        cloud = self._cloud
        points = Splats(
            position=torch.from_numpy(cloud.points[:, :3]),
            size=torch.from_numpy(cloud.points[:, 3].copy()),
            observed=torch.from_numpy(cloud.observed(np.arange(len(cloud)))),
        )
        arrays = CameraArrays.from_cameras(cameras)
        free = in_free_space(points, pixels.depth, arrays, self._rule)
        if free.any():
            cloud.remove(free.numpy())

    def _open_to_imagination(
        self, camera: Cameras, depth: Float[Tensor, '1 H W'], focal: float
    ) -> tuple[Bool[Tensor, '1 H W'], Int[np.ndarray, '1 H W']]:
        """Return the pixels that imagination may enter, and the too coarse points before them.

        Args:
            camera: Camera at the resolution of the frame.
            depth: Depth of the imagined frame.
            focal: Focal length in pixels.

        Returns:
            The mask of pixels where nothing or only a too coarse imagined point is visible, and
            the row of the too coarse point that would hide the pixel, or -1.
        """
        if not len(self):
            return torch.ones_like(depth, dtype=torch.bool), np.full(depth.shape, -1)
        row, point_depth = self._cloud.nearest(CameraArrays.from_cameras(camera), self._rule)
        coarse = self._cloud.points[row, 3] > self.config.finer * (depth / focal).numpy()
        coarse &= (row >= 0) & ~self._cloud.observed(row)
        hiding = np.where(coarse & (point_depth < depth.numpy()), row, -1)
        return torch.from_numpy((row < 0) | coarse), hiding


def _in_cells(values: Tensor, stride: int) -> Tensor:
    """Group the pixels of each cell: (n, h * stride, w * stride) to (n, h, w, stride * stride)."""
    cells = values.unflatten(1, (-1, stride)).unflatten(3, (-1, stride))
    return cells.transpose(2, 3).flatten(3)
