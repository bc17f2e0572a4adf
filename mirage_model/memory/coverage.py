"""How much of a view the memory covers: exactly, from a readout, or estimated from blocks of cells.

The estimate counts the cells in voxels, 8 x 8 x 8 of them a brick, and sends a few rays through them.
A ray adds up how many cells lie in the beam of the latent cell that it stands for: the share of such
cells that are shown something is taken from that number, and what is in front weighs first.
`evaluation.bench_score` measures the error against the readout.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import no_type_check

from jaxtyping import Float, Float32, Float64, Int32
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.memory import Readout
from mirage_model.memory.block_store import Store
from mirage_model.memory.cpu_reader import in_parts
from mirage_model.memory.kernels import compiled
from mirage_model.memory.points import IMAGINED, Cells
from mirage_model.memory.visibility import Rule, Views

RAYS = 96
"""Of a view, about, spread evenly."""

EDGE = 2.0
"""Of a voxel, in mean sizes of a cell."""

BRICK = 8
"""Voxels along the edge of a brick."""

MOST_BRICKS = 1 << 22
"""Places of bricks, filled or not; where a memory needs more its voxels are made larger."""

EVEN = 1.5
"""How evenly cells lie. At random a beam of a mean of N cells has one with 1 - exp(-N); on a lattice
with min(1, N), which 1 - exp(-(N + EVEN N^3)) follows, a little below it."""

ENOUGH = 0.98
"""A ray whose beams are shown something with this share goes no further."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Of every view the share that the memory covers, the share that it observed, and the mean age in
    seconds of what is visible, which means nothing where nothing is."""

    visible: Float[Tensor, 'n']
    observed: Float[Tensor, 'n']
    age: Float[Tensor, 'n']

    @classmethod
    def of(cls, readout: Readout) -> Coverage:
        visible = readout.visible.flatten(1).float()
        return cls(
            visible=visible.mean(dim=1),
            observed=readout.observed.flatten(1).float().mean(dim=1),
            age=(readout.age.flatten(1) * visible).sum(dim=1) / visible.sum(dim=1).clamp(min=1),
        )

    def split(self, counts: list[int]) -> list[Coverage]:
        """Parts of so many views each."""
        parts = zip(*(values.split(counts) for values in vars(self).values()), strict=True)
        return [Coverage(visible=v, observed=o, age=a) for v, o, a in parts]


@dataclass(kw_only=True)
class _Grid:
    """Voxels from ``origin`` on, of ``edge`` metres; ``bricks`` says where each brick's sums are, or -1.

    ``sums`` are of a voxel's cells: their number, sizes, times, and how many were observed.
    """

    origin: Float64[np.ndarray, '3']
    edge: float
    bricks: Int32[np.ndarray, 'x y z']
    sums: Float32[np.ndarray, 'b 512 4']
    filled: int = 0

    @classmethod
    def around(cls, blocks: list[Cells]) -> _Grid:
        """Empty, and wide enough for the blocks and half as much on every side."""
        lower = np.min([block.points[:3].min(axis=1) for block in blocks], axis=0)
        upper = np.max([block.points[:3].max(axis=1) for block in blocks], axis=0)
        cells = sum(len(block) for block in blocks)
        edge = EDGE * sum(float(block.points[3].sum()) for block in blocks) / cells
        middle, half = (lower + upper) / 2.0, (upper - lower).astype(np.float64)
        while True:
            size = np.ceil(2 * half / (BRICK * edge)).astype(np.int64) + 2
            if size.prod() <= MOST_BRICKS:
                break
            edge *= 1.25
        return cls(
            origin=middle - size * BRICK * edge / 2,
            edge=edge,
            bricks=np.full(size, -1, np.int32),
            sums=np.zeros((64, BRICK**3, 4), np.float32),
        )

    def holds(self, block: Cells) -> bool:
        size = np.array(self.bricks.shape) * BRICK * self.edge
        inside = block.points[:3] - self.origin[:, None]
        return bool((inside >= 0).all() and (inside < size[:, None]).all())

    def add(self, block: Cells, sign: int) -> None:
        if self.filled + len(block) > len(self.sums):
            more = max(len(self.sums), len(block))
            self.sums = np.concatenate(
                [self.sums, np.zeros((more, *self.sums.shape[1:]), np.float32)]
            )
        self.filled = _count(
            block.points, block.order, block.written, self.origin, self.edge, np.float32(sign),
            self.bricks, self.sums, self.filled,
        )  # fmt: skip


class Estimator:
    """The coverage of one memory's stores; of a new store only blocks that changed are counted anew."""

    def __init__(self) -> None:
        self._store, self._grid = Store(), None
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the counts, 0 before they are first asked for."""
        grid = self._grid
        return 0 if grid is None else grid.bricks.nbytes + grid.sums.nbytes

    def coverage(
        self, store: Store, cameras: Cameras, rule: Rule, now: Float32[np.ndarray, 'n']
    ) -> Coverage:
        """Of cameras on the latent grid, at ``now`` seconds since the memory's origin."""
        result = np.zeros((len(now), 3), np.float32)
        with self._lock:
            self._follow(store)
            if self._grid is not None:
                self._send_rays(self._grid, cameras, rule, now, result)
        visible, observed, age = torch.from_numpy(result).unbind(dim=1)
        return Coverage(visible=visible, observed=observed, age=age)

    def _follow(self, store: Store) -> None:
        gone, new = store.changes(self._store)
        if self._grid is None or not all(self._grid.holds(block) for block in new):
            gone, new = [], store.blocks()
            self._grid = _Grid.around(new) if new else None
        for block in gone:
            self._grid.add(block, -1)
        for block in new:
            self._grid.add(block, 1)
        self._store = store

    def _send_rays(
        self,
        grid: _Grid,
        cameras: Cameras,
        rule: Rule,
        now: Float32[np.ndarray, 'n'],
        result: Float32[np.ndarray, 'n 3'],
    ) -> None:
        views = Views.of(cameras)
        divisor = max(1.0, (cameras.height * cameras.width / RAYS) ** 0.5)
        rays = (max(1, round(cameras.height / divisor)), max(1, round(cameras.width / divisor)))
        pinholes = [
            np.ascontiguousarray(getattr(views, name).numpy())
            for name in ('rotation', 'translation', 'focal', 'centre')
        ]

        def send(part: slice) -> None:
            _send(
                grid.origin, grid.edge, grid.bricks, grid.sums,
                *(values[part] for values in pinholes), cameras.height, cameras.width, *rays,
                float(rule.splat_size), rule.near, rule.far, now[part], result[part],
            )  # fmt: skip

        in_parts(send, len(now))


@compiled
@no_type_check
def _count(points, order, written, origin, edge, sign, bricks, sums, filled):
    """Add the cells of a block to the sums, or take them out; return how many bricks there are then."""
    for i in range(points.shape[1]):
        x = np.int64((points[0, i] - origin[0]) / edge)
        y = np.int64((points[1, i] - origin[1]) / edge)
        z = np.int64((points[2, i] - origin[2]) / edge)
        brick = bricks[x // BRICK, y // BRICK, z // BRICK]
        if brick < 0:
            brick = bricks[x // BRICK, y // BRICK, z // BRICK] = filled
            filled += 1
        local = (x % BRICK * BRICK + y % BRICK) * BRICK + z % BRICK
        own = sums[brick, local]
        own[0] += sign
        own[1] += sign * points[3, i]
        own[2] += sign * written[1, i]
        if order[i] < IMAGINED:
            own[3] += sign
    return filled


@compiled
@no_type_check
def _send(
    origin, edge, bricks, sums, rotation, translation, focal, centre,
    height, width, rows, columns, splat_size, near, far, now, result,
):  # fmt: skip
    """Fill result (n, 3): visible, observed, age."""
    size = np.array(bricks.shape) * BRICK
    start, along = np.empty(3), np.empty(3)
    for view in range(len(now)):
        r = rotation[view]
        fx, fy = np.float64(focal[view, 0]), np.float64(focal[view, 1])
        # where the camera stands, in voxels
        for axis in range(3):
            at = 0.0
            for k in range(3):
                at -= r[k, axis] * np.float64(translation[view, k])
            start[axis] = (at - origin[axis]) / edge
        visible, observed, time = 0.0, 0.0, 0.0
        for ray in range(rows * columns):
            u = (ray % columns + 0.5) * width / columns - 0.5 - centre[view, 0]
            v = (ray // columns + 0.5) * height / rows - 0.5 - centre[view, 1]
            first, last = near, far
            for axis in range(3):
                # voxels for each metre of depth
                slope = (r[0, axis] * (u / fx) + r[1, axis] * (v / fy) + r[2, axis]) / edge
                if abs(slope) < 1e-9:
                    slope = 1e-9
                along[axis] = slope
                enter, leave = -start[axis] / slope, (size[axis] - start[axis]) / slope
                first, last = max(first, min(enter, leave)), min(last, max(enter, leave))
            depth, count, seen = first, 0.0, 0.0
            step = 1e-3 / max(abs(along[0]), abs(along[1]), abs(along[2]))
            while depth + step < last and seen < ENOUGH:
                x = np.int64(start[0] + (depth + step) * along[0])
                y = np.int64(start[1] + (depth + step) * along[1])
                z = np.int64(start[2] + (depth + step) * along[2])
                brick = bricks[x // BRICK, y // BRICK, z // BRICK]
                if brick < 0:
                    x, y, z = x // BRICK * BRICK, y // BRICK * BRICK, z // BRICK * BRICK
                    wide = BRICK
                else:
                    wide = 1
                end_x = (x + wide * (along[0] > 0) - start[0]) / along[0]
                end_y = (y + wide * (along[1] > 0) - start[1]) / along[1]
                end_z = (z + wide * (along[2] > 0) - start[2]) / along[2]
                end = max(depth + step, min(end_x, end_y, end_z, last))
                if brick >= 0:
                    own = sums[brick, (x % BRICK * BRICK + y % BRICK) * BRICK + z % BRICK]
                    if own[0] > 0.5:
                        middle = (depth + end) / 2
                        shown = own[1] / own[0] * np.sqrt(fx * fy) / middle
                        # a cell is shown as one at least, and as the splat_size at most
                        cell = max(1.0, min(shown, splat_size))
                        beam = (end - depth) * middle * middle / (fx * fy)
                        count += own[0] / edge**3 * beam * cell * cell
                        share = 1.0 - np.exp(-count * (1.0 + EVEN * count * count))
                        observed += (share - seen) * own[3] / own[0]
                        time += (share - seen) * own[2] / own[0]
                        seen = share
                depth = end
            visible += seen
        result[view, 0] = visible / (rows * columns)
        result[view, 1] = observed / (rows * columns)
        result[view, 2] = now[view] - time / visible if visible > 0 else 0.0
