"""Reads a store from cameras: culls its blocks, lets the cells compete, gathers the winners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Thread

from jaxtyping import Bool, Float, Float32, Float64, Int
import numpy as np
import torch
from torch import Tensor

from mirage_model.memory import Readout, kernels
from mirage_model.memory.block_store import Place, Store, Table
from mirage_model.memory.visibility import Rule, Views, surface_of

SERIAL = 50_000
"""Cells that are read by one thread sooner than a second one starts."""


def frustum(views: Views, rule: Rule, *, reach: int) -> Float64[np.ndarray, 'n p 4']:
    """Planes in the world, (normal, distance), between which all lies that covers a cell.

    ``reach`` is how many cells outside the view a point may lie; a hundredth of a cell is added.
    """
    rotation, shift = views.rotation.double().numpy(), views.translation.double().numpy()
    focal, centre = views.focal.double().numpy(), views.centre.double().numpy()
    margin = 0.51 + reach
    planes = []
    for axis, last in ((0, views.width - 1), (1, views.height - 1)):
        for sign, beyond in ((1, centre[:, axis] + margin), (-1, last + margin - centre[:, axis])):
            normal = (
                sign * focal[:, axis, None] * rotation[:, axis] + beyond[:, None] * rotation[:, 2]
            )
            distance = sign * focal[:, axis] * shift[:, axis] + beyond * shift[:, 2]
            planes.append(np.concatenate([normal, distance[:, None]], axis=1))
    along = np.concatenate([rotation[:, 2], shift[:, 2:]], axis=1)
    planes.append(along - [0, 0, 0, rule.near])
    if np.isfinite(rule.far):
        planes.append([0, 0, 0, rule.far] - along)
    return np.stack(planes, axis=1)


def far_corners(views: Views, rule: Rule, *, reach: int) -> Float64[np.ndarray, 'c 3']:
    """Points in the world between which everything lies that any of the views sees."""
    if not np.isfinite(rule.far):
        return np.array([[-np.inf] * 3, [np.inf] * 3])
    rotation, shift = views.rotation.double().numpy(), views.translation.double().numpy()
    focal, centre = views.focal.double().numpy(), views.centre.double().numpy()
    margin = 0.51 + reach
    points = [np.zeros_like(shift)]
    for x in (-margin, views.width - 1 + margin):
        for y in (-margin, views.height - 1 + margin):
            aim = (np.array([x, y]) - centre) / focal
            points.append(rule.far * np.concatenate([aim, np.ones_like(aim[:, :1])], axis=1))
    in_camera = np.stack(points, axis=1) - shift[:, None]
    # a rotation may be off by as much as `check_rigid` allows: its transpose is not its inverse
    return (in_camera @ np.linalg.inv(rotation).swapaxes(1, 2)).reshape(-1, 3)


@dataclass(frozen=True, kw_only=True)
class InView:
    """Pairs of a camera and a block that it may see, as a row of ``table``; ``places`` of rows."""

    cameras: Int[np.ndarray, 'p']
    rows: Int[np.ndarray, 'p']
    table: Table
    places: Int[np.ndarray, 'b 2']

    @property
    def cells(self) -> Int[np.ndarray, 'p']:
        """How many cells the block of every pair has."""
        return self.table.count[self.rows]


def in_view(store: Store, views: Views, rule: Rule, *, reach: int) -> InView:
    """The blocks in view, of the regions in view: what lies elsewhere is not looked at."""
    planes, corners = frustum(views, rule, reach=reach), far_corners(views, rule, reach=reach)
    box = (corners.min(axis=0), corners.max(axis=0))

    def pairs(boxes: Store | Table) -> tuple[Int[np.ndarray, 'p'], Int[np.ndarray, 'p']]:
        most = len(planes) * len(boxes.count)
        cameras, rows = np.empty(most, np.int64), np.empty(most, np.int64)
        found = kernels.cull(boxes.lower, boxes.upper, boxes.count, planes, *box, cameras, rows)
        return cameras[:found], rows[:found]

    table, places = store.table(np.unique(pairs(store)[1]).tolist())
    cameras, rows = pairs(table)
    return InView(cameras=cameras, rows=rows, table=table, places=places)


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The word that wins each cell, or NOTHING, and the row of ``table`` and cell it belongs to;
    ``places`` of rows."""

    best: Int[np.ndarray, 'n cells']
    winner: Int[np.ndarray, 'n cells 2']
    table: Table
    places: Int[np.ndarray, 'b 2']


def nearest(store: Store, views: Views, rule: Rule, *, only_observed: bool = False) -> Nearest:
    """As `zbuffer.nearest`."""
    assert rule.splat_size > 1 or not only_observed
    reach = rule.splat_size // 2
    found = in_view(store, views, rule, reach=reach)
    parts = _shares(found.cells)
    shape = (len(parts), len(views.focal), views.height * views.width)
    best = np.full(shape, kernels.NOTHING)
    winner = np.zeros((*shape, 2), np.int32)
    space = (found.table.count, found.table.address, *_pinholes(views))
    limits = (np.float32(rule.tolerance), np.float32(rule.near), np.float32(rule.far))

    def scan(part: int) -> None:
        pairs = (found.cameras[parts[part]], found.rows[parts[part]])
        size = (views.height, views.width)
        if rule.splat_size == 1:
            kernels.nearest_points(*pairs, *space, *size, *limits, best[part], winner[part])
        else:
            kernels.nearest_footprints(
                *pairs, *space, *size, reach, *limits, only_observed, best[part], winner[part]
            )

    _run(scan, len(parts))
    kernels.join(best, winner)
    return Nearest(best=best[0], winner=winner[0], table=found.table, places=found.places)


def readout(
    store: Store,
    views: Views,
    rule: Rule,
    now: Float32[np.ndarray, 'n'],
    *,
    channels: int,
    half: bool,
) -> Readout:
    """The readout of cameras at ``now`` seconds since the memory's origin."""
    n, height, width = len(views.focal), views.height, views.width
    cells = height * width
    latents = np.zeros((n, cells, channels), np.uint32)
    visible, observed = np.zeros((2, n, cells), np.bool_)
    depth, age = np.zeros((2, n, cells), np.float32)
    ratio = np.ones((n, cells), np.float32)
    offset = np.zeros((n, 2, cells), np.float32)
    seen = nearest(store, views, rule)
    kernels.gather(
        seen.best, seen.winner, seen.table.count, seen.table.address, half, *_pinholes(views),
        width, now, latents, visible, observed, depth, ratio, age, offset,
    )  # fmt: skip
    grid = (n, height, width)
    return Readout(
        latents=torch.from_numpy(latents.view(np.float32)).view(*grid, channels).movedim(-1, 1),
        visible=torch.from_numpy(visible).view(grid),
        observed=torch.from_numpy(observed).view(grid),
        depth=torch.from_numpy(depth).view(grid),
        age=torch.from_numpy(age).view(grid),
        offset=torch.from_numpy(offset).view(n, 2, height, width),
        depth_ratio=torch.from_numpy(ratio).view(grid).log(),
    )


def sizes(shown: Nearest) -> Float32[np.ndarray, 'n cells']:
    """The size in metres of the cells that are shown, infinite where there are none."""
    size = np.full(shown.best.shape, np.inf, np.float32)
    kernels.sizes(shown.best, shown.winner, shown.table.count, shown.table.address, size)
    return size


def ranks(shown: Nearest) -> Float32[np.ndarray, 'n cells']:
    """The depth with which the cells that are shown compete, infinite where there are none."""
    rank = (shown.best >> 32).astype(np.int32).view(np.float32)
    return np.where(shown.best == kernels.NOTHING, np.float32(np.inf), rank)


def imagined(shown: Nearest) -> Bool[np.ndarray, 'n cells']:
    """Whether what is shown was imagined."""
    return (shown.best != kernels.NOTHING) & ((shown.best & int(kernels.IMAGINED)) != 0)


def winners(
    shown: Nearest, where: Bool[np.ndarray, 'n cells']
) -> dict[Place, Bool[np.ndarray, 'm']]:
    """Which cells of which blocks are shown somewhere of ``where``."""
    result = {}
    won = shown.winner[where]
    for row in np.unique(won[:, 0]).tolist():
        rows = np.zeros(shown.table.count[row], np.bool_)
        rows[won[won[:, 0] == row, 1]] = True
        region, slot = shown.places[row].tolist()
        result[region, slot] = rows
    return result


def observed_surface(store: Store, views: Views, rule: Rule) -> Float[Tensor, 'n h w']:
    """The depth with which observed cells compete, infinite where there are none."""
    depth = ranks(nearest(store, views, rule, only_observed=True))
    return torch.from_numpy(depth).view(len(views.focal), views.height, views.width)


def seen_through(
    store: Store, views: Views, depth: Float[Tensor, 'n h w'], rule: Rule
) -> dict[Place, Bool[np.ndarray, 'm']]:
    """`zbuffer.seen_through` for the blocks in view; only those with a cell to remove."""
    surface = surface_of(depth, rule).numpy()
    # no further than what was seen, and as far as that: also beyond what is read
    farthest = float(surface.max(initial=0.0))
    if farthest <= rule.near:
        return {}
    found = in_view(store, views, replace(rule, far=farthest), reach=0)
    blocks, count = np.unique(found.rows), found.table.count
    stops = np.cumsum(count[blocks])
    start_of = np.zeros(len(count), np.int64)
    start_of[blocks] = stops - count[blocks]
    gone = np.zeros(int(count[blocks].sum()), np.bool_)
    parts = _shares(found.cells)

    def scan(part: int) -> None:
        kernels.seen_through(
            found.cameras[parts[part]], found.rows[parts[part]], count, found.table.address,
            *_pinholes(views), surface, np.float32(rule.near), start_of, gone,
        )  # fmt: skip

    _run(scan, len(parts))
    result = {}
    for row in np.unique(blocks[np.searchsorted(stops, np.flatnonzero(gone), side='right')]):
        region, slot = found.places[row].tolist()
        result[region, slot] = gone[start_of[row] : start_of[row] + count[row]]
    return result


def _pinholes(views: Views) -> tuple[np.ndarray, ...]:
    names = ('rotation', 'translation', 'focal', 'centre')
    return tuple(np.ascontiguousarray(getattr(views, name).numpy()) for name in names)


def _shares(counts: Int[np.ndarray, 'p']) -> list[slice]:
    """The pairs cut into as many shares of about as many cells as there are threads for them."""
    total = int(counts.sum())
    threads = max(1, min(torch.get_num_threads(), total // SERIAL))
    stops = np.searchsorted(np.cumsum(counts), total * np.arange(1, threads) / threads)
    edges = [0, *stops.tolist(), len(counts)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:])]


def in_parts(work: Callable[[slice], None], count: int) -> None:
    """Do slices of ``count`` things, one a thread."""
    parts = max(1, min(torch.get_num_threads(), count))
    edges = [count * part // parts for part in range(parts + 1)]
    _run(lambda part: work(slice(edges[part], edges[part + 1])), parts)


def _run(work: Callable[[int], None], parts: int) -> None:
    """Do all parts, the first in this thread: the kernels let go of the interpreter."""
    threads = [Thread(target=work, args=(part,)) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
