"""Retrieved views: past frames are kept whole, and an index finds those that matter to a camera.

With surfels that say which frames saw them (VMem), or by the overlap of fields of view (WorldMem,
HY-WorldPlay).
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
from mirage_model.memory.visibility import Views

BEST = 4
"""Views that are handed on at once."""

SAMPLES = (1.0, 2.0, 4.0, 8.0)
"""Depths in metres at which a field of view is sampled, along `RAYS` by `RAYS` rays."""

RAYS = 8

Index = Literal['surfels', 'overlap']


@dataclass(frozen=True, kw_only=True)
class _View:
    """One frame: its cells, its camera, and the surfels that it saw."""

    cells: LatentMemory
    camera: Cameras
    surfels: np.ndarray


class RetrievedViews:
    """A readout picks, for all of its cameras together, the few views that show most of what they
    see, each for what the ones before it do not show, and projects their cells; the nearest wins.

    The published models hand retrieved frames on as they are, for attention to find what
    corresponds. Mirage's side branch adds cell by cell, so here they are moved to where the
    cameras see them. Views are never merged or dropped.
    """

    takes_latents = True

    def __init__(self, config: MemoryConfig, *, index: Index) -> None:
        self.config = config
        self._whole = replace(config, voxel=0.0, finer=0.0, capacity=0, resident=0, folder='')
        self._index: Index = index
        self._views: list[_View] = []
        self._surfels = PointCloud(values=0, dtype=np.dtype(np.uint8), voxel=0.5)

    def __len__(self) -> int:
        return sum(len(view.cells) for view in self._views)

    @property
    def nbytes(self) -> int:
        return sum(view.cells.nbytes for view in self._views)

    @property
    def index_nbytes(self) -> int:
        """Surfels, the frames that saw each, and the directories of the views."""
        views = sum(view.cells.index_nbytes + view.surfels.nbytes for view in self._views)
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
        """As `Memory.write`; a view of which no cell is kept is not held."""
        if latents is None:
            raise ValueError('views are kept as latents: they must be given to write')
        every = []
        for k in range(len(cameras)):
            one = slice(k, k + 1)
            cells = LatentMemory(self._whole)
            cells.write(
                latents[one],
                depth[one],
                cameras[one],
                valid=valid[one],
                observed=observed,
                confidence=None if confidence is None else confidence[one],
            )
            every.append(cells)
        for k, cells in enumerate(every):
            if not len(cells):
                continue
            camera = cameras[k : k + 1].to('cpu')
            surfels = self._anchor(camera, depth[k : k + 1].cpu().float(), valid[k : k + 1].cpu())
            self._views.append(_View(cells=cells, camera=camera, surfels=surfels))
        return sum(len(cells) for cells in every)

    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        """As `Memory.readout`."""
        chosen = self.retrieve(cameras.to('cpu'))
        if not chosen:
            return NoMemory(self.config.channels).readout(cameras, latents=latents)
        seen = [self._views[k].cells.readout(cameras, latents=latents) for k in sorted(chosen)]
        return _nearest_of(seen, self.config.tolerance)

    def retrieve(self, cameras: Cameras) -> list[int]:
        """Which views to hand on, by when they were written, the most useful first."""
        if not self._views:
            return []
        by_index = {'surfels': self._seen_surfels, 'overlap': self._shared_view}
        cover, weight = by_index[self._index](cameras)
        return most_useful(cover, weight, BEST)

    def _anchor(
        self, camera: Cameras, depth: Float[Tensor, '1 h w'], valid: Bool[Tensor, '1 h w']
    ) -> np.ndarray:
        """Let the surfels on which a view's cells lie know it; make those that are missing."""
        if self._index != 'surfels':
            return np.zeros(0, np.int32)
        focal = float(camera.K[0, 0, 0] * camera.K[0, 1, 1]) ** 0.5
        position = unproject(torch.where(valid, depth, 1.0), camera)[valid]
        # twice the size of a cell, so that the surfels of a surface overlap and close it
        points = torch.cat([position, (2 * depth[valid] / focal)[:, None]], dim=1).numpy()
        nothing = np.zeros((len(points), 0), np.uint8)
        # the first of a voxel stays, so that a row is the same surfel for ever
        rows, _ = self._surfels.insert(points, nothing, stamp=0, observed=False)
        return np.unique(rows)

    def _seen_surfels(
        self, cameras: Cameras
    ) -> tuple[Bool[np.ndarray, 'v k'], Float32[np.ndarray, 'k']]:
        """Which view saw which of the surfels in view of the cameras, and in how many cells they
        are.
        """
        rule = self.config.rule(splat_size=max(3, self.config.splat_size))
        row, _ = self._surfels.nearest(Views.of(cameras), rule)
        surfels, count = np.unique(row[row >= 0], return_counts=True)
        at = np.full(len(self._surfels), len(surfels))  # those not in view go to the last column
        at[surfels] = np.arange(len(surfels))
        cover = np.zeros((len(self._views), len(surfels) + 1), np.bool_)
        for view, covers in zip(self._views, cover, strict=True):
            covers[at[view.surfels]] = True
        return cover[:, :-1], count.astype(np.float32)

    def _shared_view(
        self, cameras: Cameras
    ) -> tuple[Bool[np.ndarray, 'v k'], Float32[np.ndarray, 'k']]:
        """Which view has which of the points before the cameras in its own field of view."""
        cameras = resized(cameras, RAYS, RAYS)
        at = [torch.full((len(cameras), RAYS, RAYS), depth) for depth in SAMPLES]
        points = torch.cat([unproject(depth, cameras).flatten(0, 2) for depth in at])
        cover = []
        for view in self._views:
            pixels, along = project(points, view.camera[0])
            size = torch.tensor([view.camera.width, view.camera.height])
            inside = (pixels > -0.5) & (pixels < size - 0.5)
            cover.append((inside.all(dim=-1) & (along > 0)).numpy())
        return np.stack(cover), np.ones(len(points), np.float32)


def most_useful(
    cover: Bool[np.ndarray, 'v k'], weight: Float32[np.ndarray, 'k'], count: int
) -> list[int]:
    """Greedily, up to ``count`` rows of ``cover`` that add most to what is covered, by weight.

    Of equals the later row goes first; rows that add nothing are left out.
    """
    left, chosen = weight.copy(), []
    while len(chosen) < count:
        gain = cover @ left
        best = len(gain) - 1 - int(gain[::-1].argmax())
        if gain[best] <= 0:
            break
        chosen.append(best)
        left[cover[best]] = 0
    return chosen


def _nearest_of(seen: list[Readout], tolerance: float) -> Readout:
    """Of several readouts at the same cameras the nearest at every cell, as `Rule` says; of equals
    the later.
    """
    rank = []
    for readout in seen[::-1]:
        farther = readout.depth * (1 + tolerance * (~readout.observed).float())
        rank.append(torch.where(readout.visible, farther, torch.inf))
    best = torch.stack(rank).argmin(dim=0)

    def pick(name: str) -> Tensor:
        values = torch.stack([getattr(readout, name) for readout in seen[::-1]])
        index = best[None]
        if values.ndim == index.ndim + 1:
            index = index[:, :, None].expand(1, *values.shape[1:])
        return values.gather(0, index)[0]

    return Readout(**{name: pick(name) for name in vars(seen[0])})
