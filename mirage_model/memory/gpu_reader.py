"""Reads a store on a GPU: the rule of `zbuffer` in Triton, over blocks that are kept there.

Like the kernels on the CPU these take blocks by their addresses: all cameras and blocks are read
in one launch and nothing is sorted. A first pass lowers one packed word a cell, depth above and
the cell's order below; a second finds whose word it was; a third gathers what won, once a cell.
Floats are float32 in the order of operations of `zbuffer`, rounded to the nearest and not fused.
"""

from __future__ import annotations

from threading import Lock
from typing import no_type_check
from weakref import WeakKeyDictionary

from jaxtyping import Float, Float32, Int
import numpy as np
import torch
from torch import Tensor
import triton
import triton.language as tl

from mirage_model.memory import Readout
from mirage_model.memory.block_store import Store
from mirage_model.memory.cpu_reader import in_view
from mirage_model.memory.points import Cells
from mirage_model.memory.visibility import NOTHING, Rule, Views

TILE = 128
"""Cells that one program of a kernel reads."""

_EXACT = {'enable_fp_fusion': False}


class GpuReader:
    """The blocks that were in view so far on one device, and the readouts that they give.

    A block's copy lives as long as the block; one that lies on disk is not kept. Any number of
    threads may read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: WeakKeyDictionary[Cells, Tensor] = WeakKeyDictionary()
        self._copying = Lock()

    def readout(
        self,
        store: Store,
        views: Views,
        rule: Rule,
        now: Float32[np.ndarray, 'n'],
        *,
        channels: int,
        half: bool,
    ) -> Readout:
        """As `reader.readout`, on the device."""
        n, height, width = len(views.focal), views.height, views.width
        grid, cells = (n, height, width), n * height * width
        best, winner, count, address, _kept = self.nearest(store, views, rule)
        latents = torch.zeros(*grid, channels, device=self.device)
        visible, observed = torch.zeros(2, *grid, dtype=torch.bool, device=self.device)
        depth, age = torch.zeros(2, *grid, device=self.device)
        ratio = torch.ones(grid, device=self.device)
        offset = torch.zeros(n, 2, height, width, device=self.device)
        _gather[(triton.cdiv(cells, TILE),)](
            best, winner, count, address, self._pinholes(views), self._here(now),
            latents, visible, observed, depth, ratio, age, offset,
            cells, height, width, channels,
            HALF=half, NOTHING=NOTHING, TILE=TILE, CHANNELS=triton.next_power_of_2(max(1, channels)),
            **_EXACT,
        )  # fmt: skip
        return Readout(
            latents=latents.movedim(-1, 1),
            visible=visible,
            observed=observed,
            depth=depth,
            age=age,
            offset=offset,
            depth_ratio=ratio.log(),
        )

    def nearest(
        self, store: Store, views: Views, rule: Rule
    ) -> tuple[
        Int[Tensor, 'n h w'], Int[Tensor, 'n h w 2'], Int[Tensor, 'b'], Int[Tensor, 'b 4'], list
    ]:
        """The word that wins each cell, or NOTHING, and the block and the row that it belongs to.

        With them the blocks' counts and addresses, and what must live while these are used.
        """
        reach = rule.splat_size // 2
        found = in_view(store, views, rule, reach=reach)
        rows, block = np.unique(found.rows, return_inverse=True)
        kept = [
            self._copy(store.block((region, slot)), keep=not file)
            for (region, slot), file in zip(
                found.places[rows].tolist(), found.table.file[rows].tolist()
            )
        ]
        count = found.table.count[rows]
        base = np.array([copy.data_ptr() for copy in kept], np.int64)
        # as `_copy` lays them: points, order, written, latents
        address = base[:, None] + count[:, None] * np.array([0, 24, 16, 28])
        tiles = -(-found.cells // TILE)
        pair = np.repeat(np.arange(len(tiles)), tiles)
        start = (np.arange(len(pair)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * TILE
        work = np.stack([found.cameras[pair], block[pair], start]).astype(np.int32)
        shape = (len(views.focal), views.height, views.width)
        best = torch.full(shape, NOTHING, device=self.device)
        winner = torch.zeros(*shape, 2, dtype=torch.int32, device=self.device)
        on_device = (self._here(count), self._here(address))
        items, pinholes = self._here(work), self._pinholes(views)
        limits = self._here(np.array([rule.tolerance, rule.near, rule.far], np.float32))
        for second in (False, True) if len(pair) else ():
            _compete[(len(pair),)](
                items, *on_device, pinholes, limits, best, winner,
                len(pair), views.height, views.width,
                SECOND=second, REACH=reach, TILE=TILE, **_EXACT,
            )  # fmt: skip
        return best, winner, *on_device, kept

    def _copy(self, cells: Cells, *, keep: bool) -> Tensor:
        """Points, written, order and latents of a block one after the other."""
        copy = self._copies.get(cells)
        if copy is None:
            arrays = (cells.points, cells.written, cells.order, cells.latents)
            packed = np.concatenate([values.reshape(-1).view(np.uint8) for values in arrays])
            copy = torch.from_numpy(packed).to(self.device)
            if keep:
                with self._copying:
                    self._copies[cells] = copy
        return copy

    def _pinholes(self, views: Views) -> Float[Tensor, 'n 16']:
        names = ('rotation', 'translation', 'focal', 'centre')
        return torch.cat([getattr(views, name).flatten(1) for name in names], 1).to(self.device)

    def _here(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


@triton.jit
@no_type_check
def _project(points, m, i, mask, pinhole):
    """As `zbuffer.project`."""
    x = tl.load(points + i, mask=mask, other=0.0)
    y = tl.load(points + m + i, mask=mask, other=0.0)
    z = tl.load(points + 2 * m + i, mask=mask, other=0.0)
    across = (tl.load(pinhole) * x + tl.load(pinhole + 1) * y) + tl.load(pinhole + 2) * z
    down = (tl.load(pinhole + 3) * x + tl.load(pinhole + 4) * y) + tl.load(pinhole + 5) * z
    along = (tl.load(pinhole + 6) * x + tl.load(pinhole + 7) * y) + tl.load(pinhole + 8) * z
    depth = along + tl.load(pinhole + 11)
    u = tl.math.div_rn(across + tl.load(pinhole + 9), depth) * tl.load(pinhole + 12)
    v = tl.math.div_rn(down + tl.load(pinhole + 10), depth) * tl.load(pinhole + 13)
    return u + tl.load(pinhole + 14), v + tl.load(pinhole + 15), depth


@triton.jit
@no_type_check
def _compete(
    work, count, address, pinholes, limits, best, winner, items, height, width,
    SECOND: tl.constexpr, REACH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of a block for one camera: lower ``best``, or in the second pass say who did."""
    item = tl.program_id(0)
    camera = tl.load(work + item).to(tl.int64)
    block = tl.load(work + items + item).to(tl.int64)
    i = tl.load(work + 2 * items + item) + tl.arange(0, TILE)
    m = tl.load(count + block)
    mask = i < m
    points = tl.load(address + block * 4).to(tl.pointer_type(tl.float32))
    order = tl.load(address + block * 4 + 1).to(tl.pointer_type(tl.uint32))
    pinhole = pinholes + camera * 16
    u, v, depth = _project(points, m, i, mask, pinhole)
    fx, fy = tl.load(pinhole + 12), tl.load(pinhole + 13)
    size = tl.load(points + 3 * m + i, mask=mask, other=0.0)
    low = tl.load(order + i, mask=mask, other=0).to(tl.int64)
    farther = tl.where(low >= 2147483648, tl.load(limits), 0.0)
    inside = mask & (depth >= tl.load(limits + 1)) & (depth < tl.load(limits + 2))
    inside = inside & (u > -REACH - 1) & (u < width + REACH + 1)
    inside = inside & (v > -REACH - 1) & (v < height + REACH + 1)
    column, row = tl.floor(u + 0.5), tl.floor(v + 0.5)
    half_x = tl.math.div_rn(size * fx, depth) * 0.5
    half_y = tl.math.div_rn(size * fy, depth) * 0.5
    best += camera * height * width
    winner += camera * height * width * 2
    for dy in tl.static_range(-REACH, REACH + 1):
        for dx in tl.static_range(-REACH, REACH + 1):
            x, y = column + dx, row + dy
            off_x, off_y = tl.abs(u - x), tl.abs(v - y)
            covers = inside & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            if dx != 0:
                covers = covers & (off_x < half_x)
            if dy != 0:
                covers = covers & (off_y < half_y)
            rank = depth
            if REACH > 0:
                slope = tl.maximum(tl.math.div_rn(off_x, fx), tl.math.div_rn(off_y, fy))
                rank = depth + depth * slope
            rank = rank + rank * farther
            word = (rank.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low
            cell = tl.where(covers, y * width + x, 0.0).to(tl.int32)
            if SECOND:
                won = covers & (tl.load(best + cell, mask=covers, other=0) == word)
                tl.store(winner + cell * 2, block.to(tl.int32), mask=won)
                tl.store(winner + cell * 2 + 1, i, mask=won)
            else:
                tl.atomic_min(best + cell, word, mask=covers)


@triton.jit
@no_type_check
def _gather(
    best, winner, count, address, pinholes, now,
    latents, visible, observed, depth, ratio, age, offset, cells, height, width, channels,
    HALF: tl.constexpr, NOTHING: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Fill a readout that is zero from the winners; latents is (n, h, w, c)."""
    cell = tl.program_id(0) * TILE + tl.arange(0, TILE)
    word = tl.load(best + cell, mask=cell < cells, other=NOTHING)
    seen = word != NOTHING
    block = tl.load(winner + cell * 2, mask=seen, other=0).to(tl.int64)
    i = tl.load(winner + cell * 2 + 1, mask=seen, other=0)
    m = tl.load(count + block, mask=seen, other=0)
    area = height * width
    camera, place = cell // area, cell % area
    points = tl.load(address + block * 4, mask=seen, other=0).to(tl.pointer_type(tl.float32))
    written = tl.load(address + block * 4 + 2, mask=seen, other=0).to(tl.pointer_type(tl.float32))
    pinhole = pinholes + tl.where(seen, camera, 0) * 16
    u, v, z = _project(points, m, i, seen, pinhole)
    tl.store(visible + cell, seen, mask=seen)
    tl.store(observed + cell, (word & 4294967295) < 2147483648, mask=seen)
    tl.store(depth + cell, z, mask=seen)
    at_depth = tl.load(written + i, mask=seen, other=1.0)
    tl.store(ratio + cell, tl.math.div_rn(z, at_depth), mask=seen)
    at_time = tl.load(written + m + i, mask=seen, other=0.0)
    tl.store(age + cell, tl.load(now + camera, mask=seen, other=0.0) - at_time, mask=seen)
    to = offset + camera * 2 * area + place
    tl.store(to, u - (place % width).to(tl.float32), mask=seen)
    tl.store(to + area, v - (place // width).to(tl.float32), mask=seen)
    c = tl.arange(0, CHANNELS)[None, :]
    known = seen[:, None] & (c < channels)
    source = tl.load(address + block * 4 + 3, mask=seen, other=0)[:, None]
    at = i.to(tl.int64)[:, None] * channels + c
    if HALF:
        short = tl.load(source.to(tl.pointer_type(tl.uint16)) + at, mask=known, other=0)
        value = (short.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        value = tl.load(source.to(tl.pointer_type(tl.float32)) + at, mask=known, other=0.0)
    tl.store(latents + cell.to(tl.int64)[:, None] * channels + c, value, mask=known)
