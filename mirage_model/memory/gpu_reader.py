"""Reading a block store on a GPU: the visibility rule in Triton, over copies of the blocks.

The kernels take blocks by their addresses, as those of the CPU do. One launch reads all cameras
and blocks, and nothing is sorted. A first pass lowers one packed word per cell, with depth above
and the point's order below. A second pass finds the point of the word, and a third gathers the
winners. Floats are float32 in the order of operations of `visibility`, rounded to nearest and not
fused.
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
from mirage_model.memory.block_store import BlockStore
from mirage_model.memory.cpu_reader import blocks_in_view
from mirage_model.memory.points import NO_POINT, LatentPoints
from mirage_model.memory.visibility import CameraArrays, VisibilityRule

TILE = 128
"""Points that one program of a kernel reads."""

_EXACT = {'enable_fp_fusion': False}


class GpuReader:
    """Readouts on one device, with copies of the blocks that were in view.

    A copy lives as long as its block. Blocks in files are copied for each readout. Any number of
    threads may read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: WeakKeyDictionary[LatentPoints, Tensor] = WeakKeyDictionary()
        self._copying = Lock()

    def readout(
        self,
        store: BlockStore,
        cameras: CameraArrays,
        rule: VisibilityRule,
        times: Float32[np.ndarray, 'n'],
        *,
        channels: int,
        half: bool,
    ) -> Readout:
        """Return the readout of `cpu_reader.readout` on the device."""
        n, height, width = len(cameras), cameras.height, cameras.width
        grid, cells = (n, height, width), n * height * width
        best, winner, count, address, _copies = self.nearest(store, cameras, rule)
        latents = torch.zeros(*grid, channels, device=self.device)
        visible, observed = torch.zeros(2, *grid, dtype=torch.bool, device=self.device)
        depth, age = torch.zeros(2, *grid, device=self.device)
        ratio = torch.ones(grid, device=self.device)
        offset = torch.zeros(n, 2, height, width, device=self.device)
        _gather[(triton.cdiv(cells, TILE),)](
            best, winner, count, address, self._pinholes(cameras), self._to_device(times),
            latents, visible, observed, depth, ratio, age, offset,
            cells, height, width, channels,
            HALF=half, NO_POINT=NO_POINT, TILE=TILE,
            CHANNELS=triton.next_power_of_2(max(1, channels)), **_EXACT,
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
        self, store: BlockStore, cameras: CameraArrays, rule: VisibilityRule
    ) -> tuple[
        Int[Tensor, 'n h w'], Int[Tensor, 'n h w 2'], Int[Tensor, 'b'], Int[Tensor, 'b 4'], list
    ]:
        """Return the points that cells see.

        Returns:
            The packed word of each cell, or NO_POINT; its block and row in the block; the blocks'
            point counts and addresses; and the copies, which must outlive the use of the
            addresses.
        """
        reach = rule.splat_size // 2
        in_view = blocks_in_view(store, cameras, rule, reach=reach)
        rows, block = np.unique(in_view.rows, return_inverse=True)
        copies = [
            self._copy(store.block((region, slot)), keep=not file)
            for (region, slot), file in zip(
                in_view.slots[rows].tolist(), in_view.table.file[rows].tolist()
            )
        ]
        count = in_view.table.count[rows]
        base = np.array([copy.data_ptr() for copy in copies], np.int64)
        # xyz_size, order, depth_time and latents in the layout of `_copy`
        address = base[:, None] + count[:, None] * np.array([0, 24, 16, 28])
        tiles = -(-in_view.point_counts // TILE)
        pair = np.repeat(np.arange(len(tiles)), tiles)
        start = (np.arange(len(pair)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * TILE
        work = np.stack([in_view.cameras[pair], block[pair], start]).astype(np.int32)
        shape = (len(cameras), cameras.height, cameras.width)
        best = torch.full(shape, NO_POINT, device=self.device)
        winner = torch.zeros(*shape, 2, dtype=torch.int32, device=self.device)
        on_device = (self._to_device(count), self._to_device(address))
        items, pinholes = self._to_device(work), self._pinholes(cameras)
        limits = self._to_device(np.array([rule.tolerance, rule.near, rule.far], np.float32))
        for second in (False, True) if len(pair) else ():
            _compete[(len(pair),)](
                items, *on_device, pinholes, limits, best, winner,
                len(pair), cameras.height, cameras.width,
                SECOND=second, REACH=reach, TILE=TILE, **_EXACT,
            )  # fmt: skip
        return best, winner, *on_device, copies

    def _copy(self, points: LatentPoints, *, keep: bool) -> Tensor:
        """Return a block on the device: xyz_size, depth_time, order and latents as one buffer."""
        copy = self._copies.get(points)
        if copy is None:
            arrays = (points.xyz_size, points.depth_time, points.order, points.latents)
            packed = np.concatenate([values.reshape(-1).view(np.uint8) for values in arrays])
            copy = torch.from_numpy(packed).to(self.device)
            if keep:
                with self._copying:
                    self._copies[points] = copy
        return copy

    def _pinholes(self, cameras: CameraArrays) -> Float[Tensor, 'n 16']:
        return torch.cat([values.flatten(1) for values in cameras.tensors()], 1).to(self.device)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


@triton.jit
@no_type_check
def _project(xyz_size, m, i, mask, pinhole):
    """Project points i of a block of m, as `visibility.project`."""
    x = tl.load(xyz_size + i, mask=mask, other=0.0)
    y = tl.load(xyz_size + m + i, mask=mask, other=0.0)
    z = tl.load(xyz_size + 2 * m + i, mask=mask, other=0.0)
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
    """Process a tile of a block for one camera: lower best, or in pass two write winner."""
    item = tl.program_id(0)
    camera = tl.load(work + item).to(tl.int64)
    block = tl.load(work + items + item).to(tl.int64)
    i = tl.load(work + 2 * items + item) + tl.arange(0, TILE)
    m = tl.load(count + block)
    mask = i < m
    xyz_size = tl.load(address + block * 4).to(tl.pointer_type(tl.float32))
    order = tl.load(address + block * 4 + 1).to(tl.pointer_type(tl.uint32))
    pinhole = pinholes + camera * 16
    u, v, depth = _project(xyz_size, m, i, mask, pinhole)
    fx, fy = tl.load(pinhole + 12), tl.load(pinhole + 13)
    size = tl.load(xyz_size + 3 * m + i, mask=mask, other=0.0)
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
    best, winner, count, address, pinholes, times,
    latents, visible, observed, depth, ratio, age, offset, cells, height, width, channels,
    HALF: tl.constexpr, NO_POINT: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Fill a zeroed readout from the winners; latents is (n, h, w, c)."""
    cell = tl.program_id(0) * TILE + tl.arange(0, TILE)
    word = tl.load(best + cell, mask=cell < cells, other=NO_POINT)
    covered = word != NO_POINT
    block = tl.load(winner + cell * 2, mask=covered, other=0).to(tl.int64)
    i = tl.load(winner + cell * 2 + 1, mask=covered, other=0)
    m = tl.load(count + block, mask=covered, other=0)
    area = height * width
    camera, in_image = cell // area, cell % area
    xyz_size = tl.load(address + block * 4, mask=covered, other=0).to(tl.pointer_type(tl.float32))
    depth_time = tl.load(address + block * 4 + 2, mask=covered, other=0).to(
        tl.pointer_type(tl.float32)
    )
    pinhole = pinholes + tl.where(covered, camera, 0) * 16
    u, v, z = _project(xyz_size, m, i, covered, pinhole)
    tl.store(visible + cell, covered, mask=covered)
    tl.store(observed + cell, (word & 4294967295) < 2147483648, mask=covered)
    tl.store(depth + cell, z, mask=covered)
    at_depth = tl.load(depth_time + i, mask=covered, other=1.0)
    tl.store(ratio + cell, tl.math.div_rn(z, at_depth), mask=covered)
    at_time = tl.load(depth_time + m + i, mask=covered, other=0.0)
    tl.store(age + cell, tl.load(times + camera, mask=covered, other=0.0) - at_time, mask=covered)
    to = offset + camera * 2 * area + in_image
    tl.store(to, u - (in_image % width).to(tl.float32), mask=covered)
    tl.store(to + area, v - (in_image // width).to(tl.float32), mask=covered)
    c = tl.arange(0, CHANNELS)[None, :]
    channel_mask = covered[:, None] & (c < channels)
    source = tl.load(address + block * 4 + 3, mask=covered, other=0)[:, None]
    at = i.to(tl.int64)[:, None] * channels + c
    if HALF:
        short = tl.load(source.to(tl.pointer_type(tl.uint16)) + at, mask=channel_mask, other=0)
        value = (short.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        value = tl.load(source.to(tl.pointer_type(tl.float32)) + at, mask=channel_mask, other=0.0)
    tl.store(latents + cell.to(tl.int64)[:, None] * channels + c, value, mask=channel_mask)
