"""The latent spatial memory: the model's own latents, each at a point of the world."""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Literal

from jaxtyping import Bool, Float
import torch
from torch import Tensor
import torch.nn.functional as F

from mirage_model.camera import Cameras, unproject
from mirage_model.memory import Readout
from mirage_model.memory.zbuffer import Points, Rule, Views, nearest, project


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """``footprint``, ``near`` and ``far`` (metres) are those of `Rule`; ``dtype`` is what latents
    are held in.

    ``tolerance`` is the share of its depth within which a surface counts as the same: an imagined
    cell that stands further than this in front of an observed surface is refused, an old cell that
    stands further than this in front of what a sensor sees now is removed, and within it an
    observed cell wins over an imagined.
    """

    channels: int
    footprint: int = 1
    tolerance: float = 0.05
    near: float = 0.05
    far: float = math.inf
    dtype: Literal['bfloat16', 'float32'] = 'bfloat16'

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f'channels must be positive, got {self.channels}')
        if self.footprint < 1 or self.footprint % 2 == 0:
            raise ValueError(f'footprint must be an odd number of cells, got {self.footprint}')
        if not 0 <= self.tolerance < 1:
            raise ValueError(f'tolerance must be a share in 0..1, got {self.tolerance}')
        if not 0 < self.near < self.far:
            raise ValueError(f'need 0 < near < far, got {self.near} and {self.far}')

    def rule(self, *, footprint: int | None = None) -> Rule:
        return Rule(
            footprint=footprint or self.footprint,
            tolerance=self.tolerance,
            near=self.near,
            far=self.far,
        )


class LatentMemory:
    """Cells in the order in which they were written; seconds count from the first camera's time.

    A write at the cameras of an observation first removes the old cells that they see through; a
    write of imagined latents leaves out the cells that would stand in front of what was observed.
    """

    def __init__(self, config: MemoryConfig, *, device: torch.device | str = 'cpu') -> None:
        self.config = config
        self._origin: float | None = None
        self._count = 0
        self._cells = {
            'position': torch.empty(0, 3, device=device),
            'depth': torch.empty(0, device=device),
            'size': torch.empty(0, device=device),
            'time': torch.empty(0, device=device),
            'observed': torch.empty(0, dtype=torch.bool, device=device),
            'latents': torch.empty(
                0, config.channels, dtype=getattr(torch, config.dtype), device=device
            ),
        }

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return sum(values[: self._count].nbytes for values in self._cells.values())

    def fork(self) -> LatentMemory:
        branch = LatentMemory(self.config, device=self._cells['position'].device)
        branch._origin = self._origin
        branch._count = self._count
        branch._cells = {
            name: values[: self._count].clone() for name, values in self._cells.items()
        }
        return branch

    @torch.no_grad()
    def write(
        self,
        latents: Float[Tensor, 'n c h w'],
        depth: Float[Tensor, 'n h w'],
        cameras: Cameras,
        *,
        keep: Bool[Tensor, 'n h w'],
        observed: bool,
    ) -> int:
        """As `Memory.write`; latents are held in the memory's dtype."""
        self._check(latents, depth, cameras, keep)
        device = self._cells['position'].device
        latents, depth, keep = latents.to(device), depth.to(device), keep.to(device)
        cameras = cameras.to(device)
        if self._origin is None:
            self._origin = float(cameras.times[0])
        if observed:
            self._remove(seen_through(self._points(), depth, cameras, rule=self.config.rule()))
        else:
            keep = keep & ~self._hides_observed(depth, cameras)
        focal = cameras.K[:, [0, 1], [0, 1]].prod(dim=-1).sqrt()[:, None, None]
        time = (cameras.times.double() - self._origin).float()[:, None, None]
        self._append(
            position=unproject(torch.where(keep, depth, 1.0), cameras)[keep],
            depth=depth[keep],
            size=(depth / focal)[keep],
            time=time.expand_as(depth)[keep],
            observed=torch.full_like(depth, observed, dtype=torch.bool)[keep],
            latents=latents.movedim(1, -1)[keep],
        )
        return int(keep.sum())

    @torch.no_grad()
    def readout(self, cameras: Cameras) -> Readout:
        """As `Memory.readout`; who is seen is decided by `Rule`."""
        views = Views.of(cameras.to(self._cells['position'].device))
        index, _ = nearest(self._points(), views, self.config.rule())
        visible = index >= 0
        if not visible.any():
            return _empty(visible, self.config.channels, cameras)
        cell = {name: values[index.clamp(min=0)] for name, values in self._cells.items()}
        u, v, depth = project(
            cell['position'],
            *(
                values[:, None, None]
                for values in (views.rotation, views.translation, views.focal, views.centre)
            ),
        )
        x = torch.arange(views.width, device=u.device)
        y = torch.arange(views.height, device=u.device)[:, None]
        now = (cameras.times.double().to(u.device) - self._origin).float()[:, None, None]
        readout = Readout(
            latents=torch.where(visible[..., None], cell['latents'].float(), 0.0).movedim(-1, 1),
            visible=visible,
            observed=visible & cell['observed'],
            depth=torch.where(visible, depth, 0.0),
            age=torch.where(visible, now - cell['time'], 0.0),
            offset=torch.where(visible[:, None], torch.stack([u - x, v - y], dim=1), 0.0),
            depth_ratio=torch.where(visible, (depth / cell['depth']).log(), 0.0),
        )
        return Readout(
            **{name: value.to(cameras.K.device) for name, value in vars(readout).items()}
        )

    def _check(self, latents: Tensor, depth: Tensor, cameras: Cameras, keep: Tensor) -> None:
        grid = (len(cameras), cameras.height, cameras.width)
        if latents.shape != (grid[0], self.config.channels, *grid[1:]):
            raise ValueError(
                f'latents are {tuple(latents.shape)}; {grid[0]} cameras of {grid[1]}x{grid[2]} '
                f'cells and {self.config.channels} channels were expected'
            )
        if depth.shape != grid or keep.shape != grid:
            raise ValueError(
                f'depth is {tuple(depth.shape)} and keep {tuple(keep.shape)}, not {grid}'
            )
        wrong = keep & ~(torch.isfinite(depth) & (depth > 0))
        if wrong.any():
            where = wrong.nonzero()[0].tolist()
            raise ValueError(f'camera, row, column {where}: a cell without depth cannot be kept')
        wrong = keep & ~torch.isfinite(latents).all(dim=1)
        if wrong.any():
            where = wrong.nonzero()[0].tolist()
            raise ValueError(f'camera, row, column {where}: latents are not finite')

    def _points(self) -> Points:
        names = ('position', 'size', 'observed')
        return Points(**{name: self._cells[name][: self._count] for name in names})

    def _hides_observed(
        self, depth: Float[Tensor, 'n h w'], cameras: Cameras
    ) -> Bool[Tensor, 'n h w']:
        points = self._points()
        seen = points.observed
        points = Points(
            position=points.position[seen], size=points.size[seen], observed=seen[seen]
        )
        rule = self.config.rule(footprint=max(3, self.config.footprint))
        _, surface = nearest(points, Views.of(cameras), rule)
        return surface.isfinite() & (depth + depth * self.config.tolerance < surface)

    def _remove(self, gone: Bool[Tensor, 'm']) -> None:
        if gone.any():
            self._cells = {
                name: values[: self._count][~gone] for name, values in self._cells.items()
            }
            self._count -= int(gone.sum())

    def _append(self, **cells: Tensor) -> None:
        """Room is doubled when it runs out: a cell is copied a bounded number of times."""
        count = self._count + len(cells['depth'])
        if count > len(self._cells['depth']):
            for name, values in self._cells.items():
                grown = values.new_empty((max(count, 2 * len(values)), *values.shape[1:]))
                grown[: self._count] = values[: self._count]
                self._cells[name] = grown
        for name, values in cells.items():
            self._cells[name][self._count : count] = values
        self._count = count


def seen_through(
    points: Points, depth: Float[Tensor, 'n h w'], cameras: Cameras, *, rule: Rule
) -> Bool[Tensor, 'm']:
    """Points that stand in front of what the cameras' ``depth`` says they saw.

    To be sure near depth edges, a point must be nearer than the nearest depth of the 3x3 cells
    around it, all of which need a valid one, by its own size and the rule's tolerance.
    """
    valid = torch.isfinite(depth) & (depth > 0)
    # unknown depth counts as 0: nothing is nearer
    padded = F.pad(torch.where(valid, depth, 0.0), (1, 1, 1, 1))
    surface = -F.max_pool2d(-padded[:, None], 3, stride=1)[:, 0]
    surface = surface - surface * rule.tolerance
    views = Views.of(cameras)
    gone = torch.zeros_like(points.observed)
    for camera in range(len(cameras)):
        u, v, distance = project(
            points.position,
            views.rotation[camera],
            views.translation[camera],
            views.focal[camera],
            views.centre[camera],
        )
        inside = (distance >= rule.near) & (u >= -0.5) & (u < views.width - 0.5)
        inside &= (v >= -0.5) & (v < views.height - 0.5)
        column = torch.where(inside, torch.floor(u + 0.5), 0).long()
        row = torch.where(inside, torch.floor(v + 0.5), 0).long()
        column, row = column.clamp(max=views.width - 1), row.clamp(max=views.height - 1)
        gone |= inside & (distance + points.size < surface[camera, row, column])
    return gone


def _empty(visible: Bool[Tensor, 'n h w'], channels: int, cameras: Cameras) -> Readout:
    n, height, width = visible.shape
    visible = visible.to(cameras.K.device)
    zero = torch.zeros(n, height, width, device=visible.device)
    return Readout(
        latents=zero[:, None].repeat(1, channels, 1, 1),
        visible=visible,
        observed=visible.clone(),
        depth=zero,
        age=zero.clone(),
        offset=zero[:, None].repeat(1, 2, 1, 1),
        depth_ratio=zero.clone(),
    )
