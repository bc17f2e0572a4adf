"""Retrieved views: past frames held whole, and an index that finds those relevant to a camera.

The index is a set of surfels with the frames that saw them (VMem), or the overlap of fields of
view (WorldMem, HY-WorldPlay).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Bool, Float, Float32
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, project, resized, unproject
from mirage_model.memory import Pixels, Readout
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.baselines.point_cloud import PointCloud
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.memory.visibility import CameraArrays

MAX_VIEWS = 4
"""Largest number of views that a readout retrieves."""

SAMPLES = (1.0, 2.0, 4.0, 8.0)
"""Depths at which a field of view is sampled, metres."""

RAYS = 8
"""Rays along each side of the image on which a field of view is sampled."""

ViewIndex = Literal['surfels', 'overlap']


@dataclass(frozen=True, kw_only=True)
class _StoredView:
    """A frame: its points, its camera, and the rows of the surfels that it saw."""

    points: LatentMemory
    camera: Cameras
    surfels: np.ndarray


class RetrievedViews:
    """Past frames, of which a readout retrieves a few and reprojects their points.

    A readout retrieves the views that together show most of what its cameras see. The published
    models pass retrieved frames on as they are, and attention finds the correspondences. Mirage's
    side branch adds cell by cell, so that this memory reprojects them. Views are never merged or
    dropped.
    """

    takes_latents = True

    def __init__(self, config: MemoryConfig, *, index: ViewIndex) -> None:
        self.config = config
        self._view_config = replace(
            config, voxel=0.0, finer=0.0, capacity=0, resident=0, folder=''
        )
        self._index: ViewIndex = index
        self._views: list[_StoredView] = []
        self._surfels = PointCloud(values=0, dtype=np.dtype(np.uint8), voxel=0.5)

    def __len__(self) -> int:
        return sum(len(view.points) for view in self._views)

    @property
    def nbytes(self) -> int:
        return sum(view.points.nbytes for view in self._views)

    @property
    def index_nbytes(self) -> int:
        """Bytes of the surfels, the frames' lists of surfels, and the frames' directories."""
        views = sum(view.points.index_nbytes + view.surfels.nbytes for view in self._views)
        return self._surfels.nbytes + self._surfels.index_nbytes + views

    def fork(self) -> RetrievedViews:
        branch = RetrievedViews(self.config, index=self._index)
        branch._views, branch._surfels = self._views.copy(), self._surfels.copy()
        return branch

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
        """Store each frame with valid cells as a view, as `Memory.write`."""
        if latents is None:
            raise ValueError('latents: missing, this memory holds latents')
        frames = []
        for k in range(len(cameras)):
            one = slice(k, k + 1)
            points = LatentMemory(self._view_config)
            points.write(
                latents[one],
                depth[one],
                cameras[one],
                valid=valid[one],
                observed=observed,
                confidence=None if confidence is None else confidence[one],
            )
            frames.append(points)
        for k, points in enumerate(frames):
            if not len(points):
                continue
            camera = cameras[k : k + 1].to('cpu')
            surfels = self._add_surfels(
                camera, depth[k : k + 1].cpu().float(), valid[k : k + 1].cpu()
            )
            self._views.append(_StoredView(points=points, camera=camera, surfels=surfels))
        return sum(len(points) for points in frames)

    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        """Retrieve views and return what the cameras see of their points."""
        chosen = self.retrieve(cameras.to('cpu'))
        if not chosen:
            return NoMemory(self.config.channels).readout(cameras, latents=latents)
        readouts = [
            self._views[k].points.readout(cameras, latents=latents) for k in sorted(chosen)
        ]
        return _nearest(readouts, self.config.tolerance)

    def retrieve(self, cameras: Cameras) -> list[int]:
        """Return the indices of the views to read, the most useful first."""
        if not self._views:
            return []
        by_index = {'surfels': self._visible_surfels, 'overlap': self._overlap}
        cover, weight = by_index[self._index](cameras)
        return greedy_cover(cover, weight, MAX_VIEWS)

    def _add_surfels(
        self, camera: Cameras, depth: Float[Tensor, '1 h w'], valid: Bool[Tensor, '1 h w']
    ) -> np.ndarray:
        """Return the rows of the surfels under a view's points; add missing surfels."""
        if self._index != 'surfels':
            return np.zeros(0, np.int32)
        focal = float(camera.K[0, 0, 0] * camera.K[0, 1, 1]) ** 0.5
        position = unproject(torch.where(valid, depth, 1.0), camera)[valid]
        # twice the size of a cell, so that the surfels of a surface overlap
        points = torch.cat([position, (2 * depth[valid] / focal)[:, None]], dim=1).numpy()
        no_values = np.zeros((len(points), 0), np.uint8)
        # as imagined points, surfels are never replaced, so that rows stay valid
        rows, _ = self._surfels.insert(points, no_values, stamp=0, observed=False)
        return np.unique(rows)

    def _visible_surfels(
        self, cameras: Cameras
    ) -> tuple[Bool[np.ndarray, 'v k'], Float32[np.ndarray, 'k']]:
        """Return which views saw each surfel visible to the cameras, and the surfel's cells."""
        rule = self.config.rule(splat_size=max(3, self.config.splat_size))
        row, _ = self._surfels.nearest(CameraArrays.from_cameras(cameras), rule)
        surfels, count = np.unique(row[row >= 0], return_counts=True)
        column = np.full(len(self._surfels), len(surfels))  # the last column is for the invisible
        column[surfels] = np.arange(len(surfels))
        cover = np.zeros((len(self._views), len(surfels) + 1), np.bool_)
        for view, covers in zip(self._views, cover, strict=True):
            covers[column[view.surfels]] = True
        return cover[:, :-1], count.astype(np.float32)

    def _overlap(
        self, cameras: Cameras
    ) -> tuple[Bool[np.ndarray, 'v k'], Float32[np.ndarray, 'k']]:
        """Return which views contain each point sampled from the cameras' fields of view."""
        cameras = resized(cameras, RAYS, RAYS)
        depths = [torch.full((len(cameras), RAYS, RAYS), depth) for depth in SAMPLES]
        points = torch.cat([unproject(depth, cameras).flatten(0, 2) for depth in depths])
        cover = []
        for view in self._views:
            pixels, along = project(points, view.camera[0])
            size = torch.tensor([view.camera.width, view.camera.height])
            inside = (pixels > -0.5) & (pixels < size - 0.5)
            cover.append((inside.all(dim=-1) & (along > 0)).numpy())
        return np.stack(cover), np.ones(len(points), np.float32)


def greedy_cover(
    cover: Bool[np.ndarray, 'v k'], weight: Float32[np.ndarray, 'k'], count: int
) -> list[int]:
    """Return up to ``count`` rows of ``cover``, each adding most weight to the covered columns.

    The later row wins a tie. Rows that add nothing are left out.
    """
    left = weight.copy()
    chosen: list[int] = []
    while len(chosen) < count:
        gain = cover @ left
        best = len(gain) - 1 - int(gain[::-1].argmax())
        if gain[best] <= 0:
            break
        chosen.append(best)
        left[cover[best]] = 0
    return chosen


def _nearest(readouts: list[Readout], tolerance: float) -> Readout:
    """Return the nearest of several readouts at each cell; the later wins a tie."""
    rank = []
    for readout in readouts[::-1]:
        farther = readout.depth * (1 + tolerance * (~readout.observed).float())
        rank.append(torch.where(readout.visible, farther, torch.inf))
    best = torch.stack(rank).argmin(dim=0)

    def pick(name: str) -> Tensor:
        values = torch.stack([getattr(readout, name) for readout in readouts[::-1]])
        index = best[None]
        if values.ndim == index.ndim + 1:
            index = index[:, :, None].expand(1, *values.shape[1:])
        return values.gather(0, index)[0]

    return Readout(**{name: pick(name) for name in vars(readouts[0])})
