"""The latent spatial memory: the model's own latents, each at a point of the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
import math
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, unproject
from mirage_model.memory import Pixels, Readout, cpu_reader, serialization
from mirage_model.memory.block_store import Prefer, Store
from mirage_model.memory.coverage import Coverage, Estimator
from mirage_model.memory.eviction import Limits, Policy, forget, page_out
from mirage_model.memory.points import IMAGINED, LATEST, Cells, joined, nbytes_each, no_cells
from mirage_model.memory.visibility import Rule, Views

FARTHEST = 1e6
"""Metres; depths that compete stay far below what float32 holds."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Limits):
    """``splat_size``, ``near`` and ``far`` (metres) are those of `Rule`; ``dtype`` is what latents
    are held in.

    ``tolerance`` is the share of its depth within which a surface counts as the same: an imagined
    cell that stands further than this in front of an observed surface is refused, an old cell that
    stands further than this in front of what a sensor sees now is removed, and within it an
    observed cell wins over an imagined.

    ``voxel`` is the edge of a voxel as a share of the size of the cells in it; a voxel keeps the
    cells of one camera, whole, and 0 keeps every cell. ``prefer`` says of which camera: the
    'newest' that wrote there, which follows a world that changes, or the one whose depth was most
    'confident', of equals the newest. An imagined cell enters
    only where its camera is shown nothing, or a cell more than ``finer`` times its size, so that
    what was imagined once stays as it was until it is seen from closer: an imagined cell as coarse
    as that, which would hide the new one, is dropped; 0 lets all enter. ``capacity`` cells are held
    at most, those dropped that ``policy`` names, and ``resident`` of them in the host's memory, the
    rest, furthest from the last camera, in ``folder``; 0 sets no bound.
    """

    channels: int
    splat_size: int = 1
    voxel: float = 1.5
    prefer: Prefer = 'newest'
    finer: float = 2.0
    tolerance: float = 0.05
    near: float = 0.05
    far: float = FARTHEST
    dtype: Literal['bfloat16', 'float32'] = 'bfloat16'

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f'channels must be positive, got {self.channels}')
        if self.splat_size < 1 or self.splat_size % 2 == 0:
            raise ValueError(f'splat_size must be an odd number of cells, got {self.splat_size}')
        if not 0 <= self.voxel < math.inf:
            raise ValueError(f'voxel must be a number of footprints, or 0, got {self.voxel}')
        if not 0 <= self.finer < math.inf:
            raise ValueError(f'finer must be a ratio of sizes, or 0, got {self.finer}')
        if self.capacity < 0 or self.resident < 0:
            raise ValueError(
                f'capacity and resident count cells: {self.capacity}, {self.resident}'
            )
        if self.policy not in get_args(Policy):
            raise ValueError(f'policy must be one of {get_args(Policy)}, got {self.policy!r}')
        if self.prefer not in get_args(Prefer):
            raise ValueError(f'prefer must be one of {get_args(Prefer)}, got {self.prefer!r}')
        if self.dtype not in _BITS:
            raise ValueError(f'dtype must be one of {sorted(_BITS)}, got {self.dtype!r}')
        if self.resident and not (self.folder and Path(self.folder).is_dir()):
            raise ValueError(f'a bound on resident cells needs a folder, got {self.folder!r}')
        if not 0 <= self.tolerance < 1:
            raise ValueError(f'tolerance must be a share in 0..1, got {self.tolerance}')
        if not 0 < self.near < self.far <= FARTHEST:
            raise ValueError(
                f'need 0 < near < far <= {FARTHEST:g}, got {self.near} and {self.far}'
            )

    def rule(self, *, splat_size: int | None = None) -> Rule:
        return Rule(
            splat_size=splat_size or self.splat_size,
            tolerance=self.tolerance,
            near=self.near,
            far=self.far,
        )


class LatentMemory:
    """Cells in blocks of space: `store` tells how they lie and merge, `Rule` who is seen.

    A write at the cameras of an observation first removes the old cells that they see through; a
    write of imagined latents, camera after camera, leaves out what the memory already shows and
    what would stand in front of an observation. The cells lie in the host's memory, and for cameras
    on a GPU a copy of what they have had in view lies there, too. One thread may write while others
    read: a reader sees a write whole or not at all.
    """

    takes_latents = True

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self._store = Store()
        self._gpu = None
        self._estimator = Estimator()
        self._origin: float | None = None
        self._writing = Lock()

    def __len__(self) -> int:
        return len(self._store)

    @property
    def nbytes(self) -> int:
        """Bytes of the cells, on disk or not; `index_nbytes` is that of what finds them."""
        return len(self._store) * self._cell_nbytes

    @property
    def resident_nbytes(self) -> int:
        """Bytes of the cells that are not on disk."""
        return self._store.resident * self._cell_nbytes

    @property
    def _cell_nbytes(self) -> int:
        return nbytes_each(self.config.channels, _BITS[self.config.dtype])

    @property
    def index_nbytes(self) -> int:
        """Bytes of the directory, and of the counts of cells that `coverage` goes by, once asked."""
        return self._store.index_nbytes + self._estimator.nbytes

    def fork(self) -> LatentMemory:
        """As `Memory.fork`; the cells are shared until one of the two changes them."""
        branch = LatentMemory(self.config)
        with self._writing:
            branch._store, branch._gpu = self._store, self._gpu
            branch._origin = self._origin
        return branch

    @torch.no_grad()
    def write(
        self,
        latents: Float[Tensor, 'n c h w'],
        depth: Float[Tensor, 'n h w'],
        cameras: Cameras,
        *,
        valid: Bool[Tensor, 'n h w'],
        observed: bool,
        confidence: Float[Tensor, 'n h w'] | None = None,
        pixels: Pixels | None = None,
    ) -> int:
        """As `Memory.write`; cells whose place they took are not subtracted from those added.

        A cell that is ``FARTHEST`` away or farther, which no camera finds, is left out.
        """
        seen = _Seen(
            latents=latents.cpu(),
            depth=depth.cpu().float(),
            confidence=(torch.ones_like(depth) if confidence is None else confidence)
            .cpu()
            .float(),
            cameras=cameras.to('cpu'),
            valid=valid.cpu(),
        )
        self._check(seen)
        seen = replace(seen, valid=seen.valid & (seen.depth < FARTHEST))
        with self._writing:
            if self._origin is None:
                self._origin = float(seen.cameras.times[0])
            store = self._store.draft()
            if store.written + seen.valid.numel() > LATEST:
                store.renumber()
            if observed:
                gone = cpu_reader.seen_through(
                    self._store, Views.of(seen.cameras), seen.depth, self.config.rule()
                )
                for place, rows in gone.items():
                    store.put(place, store.block(place).take(~rows))
                added = self._observe(store, seen)
            else:
                added = 0
                for k in range(len(seen.cameras)):
                    added += self._imagine(store, seen[k : k + 1])
            centre = seen.cameras.world_from_camera[-1, :3, 3].numpy()
            if self.config.capacity:
                forget(store, self.config.capacity, self.config.policy, centre)
            if self.config.resident:
                page_out(store, self.config.resident, Path(self.config.folder), centre)
            self._store = store
        return added

    @torch.no_grad()
    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        """As `Memory.readout`."""
        store, device = self._store, cameras.K.device
        return self._reader_on(device)(
            store,
            Views.of(cameras.to('cpu')),
            self.config.rule(),
            self._now(cameras),
            channels=self.config.channels if latents else 0,
            half=self.config.dtype == 'bfloat16',
        )

    def some(
        self, most: int
    ) -> tuple[Float[Tensor, 'm 3'], Float[Tensor, 'm c'], Bool[Tensor, 'm']]:
        """Positions in the world, latents and `observed` of up to ``most`` cells, one in so many."""
        blocks = self._store.blocks()
        step = max(1, math.ceil(len(self._store) / most))
        parts, first = [no_cells(self.config.channels, _BITS[self.config.dtype])], 0
        for block in blocks:
            parts.append(block.take(slice(first, None, step)))
            first = (first - len(block)) % step
        cells = joined(parts)
        positions = torch.from_numpy(cells.points[:3].T.copy())
        return positions, self._latents(cells).float(), torch.from_numpy(cells.observed)

    def coverage(self, cameras: Cameras) -> Coverage:
        """What `Coverage.of` the cameras' readout says, estimated from groups of cells."""
        return self._estimator.coverage(
            self._store, cameras.to('cpu'), self.config.rule(), self._now(cameras)
        )

    @torch.no_grad()
    def move(self, new_from_old: Float[Tensor, '4 4']) -> None:
        """Move every cell by a rigid transform: what a camera found it finds where it is moved to.

        Cells that share a voxel afterwards are not merged. Forks stay where they are.
        """
        with self._writing:
            cells = self._store.cells()
            if cells is None:
                return
            at = new_from_old.double().numpy()
            points = cells.points.copy()
            points[:3] = at[:3, :3] @ cells.points[:3] + at[:3, 3:]
            store = Store()
            store.lay(replace(cells, points=points), voxel=self.config.voxel)
            store.written = self._store.written
            if self.config.resident:
                page_out(store, self.config.resident, Path(self.config.folder), at[:3, 3])
            self._store = store

    def release(self) -> None:
        """Drop the copies on the GPU; what is read there again is copied again."""
        self._gpu = None

    def save(self, path: Path, *, attached: Mapping[str, Tensor] | None = None) -> None:
        """Write one safetensors file; a file that is there is replaced whole or not at all.

        ``attached`` tensors travel along; `load_attached` reads them.
        """
        store, origin = self._store, self._origin
        cells = store.cells() or no_cells(self.config.channels, _BITS[self.config.dtype])
        tensors = {
            'position': torch.from_numpy(cells.points[:3].T.copy()),
            'size': torch.from_numpy(cells.points[3].copy()),
            'depth': torch.from_numpy(cells.written[0].copy()),
            'time': torch.from_numpy(cells.written[1].copy()),
            'confidence': torch.from_numpy(cells.confidence),
            'observed': torch.from_numpy(cells.observed),
            'serial': torch.arange(len(cells), dtype=torch.int32),
            'latents': self._latents(cells),
        }
        about = {'config': asdict(self.config), 'origin': origin}
        serialization.save(path, tensors, about, attached or {})

    @classmethod
    def load(cls, path: Path, limits: Limits | None = None) -> LatentMemory:
        """The memory that was saved, within ``limits`` of its own or these.

        Raises ValueError, naming the file, for a damaged one.
        """
        return cls.load_attached(path, limits)[0]

    @classmethod
    def load_attached(
        cls, path: Path, limits: Limits | None = None
    ) -> tuple[LatentMemory, dict[str, Tensor]]:
        """As `load`, with the tensors that were saved along with the memory."""
        tensors, about, attached = serialization.load(path)
        try:
            given = {} if limits is None else asdict(limits)
            memory = cls(MemoryConfig(**{**about['config'], **given}))
            memory._origin = None if about['origin'] is None else float(about['origin'])
            if not math.isfinite(memory._origin or 0.0):
                raise ValueError(f'its origin is {memory._origin}')
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path}: its description is damaged: {error}') from error
        config, latents = memory.config, tensors['latents']
        if latents.shape[1] != config.channels or latents.dtype != getattr(torch, config.dtype):
            raise ValueError(f'{path}: latents are {latents.dtype} {tuple(latents.shape)}')
        order = (LATEST - tensors['serial'].numpy().astype(np.int64)).astype(np.uint32)
        every = Cells(
            points=torch.cat([tensors['position'], tensors['size'][:, None]], 1)
            .T.contiguous()
            .numpy(),
            order=np.where(tensors['observed'].numpy(), order, order | IMAGINED),
            written=torch.stack([tensors['depth'], tensors['time']]).numpy(),
            confidence=tensors['confidence'].numpy(),
            latents=_bits(latents),
        )
        memory._store.lay(every, voxel=config.voxel)
        memory._store.written = 1 + int(tensors['serial'].max()) if len(order) else 0
        last = every.points[:3, tensors['serial'].argmax()] if len(order) else np.zeros(3)
        if config.capacity:
            forget(memory._store, config.capacity, config.policy, last)
        if config.resident:
            page_out(memory._store, config.resident, Path(config.folder), last)
        return memory, attached

    def _latents(self, cells: Cells) -> Float[Tensor, 'm c']:
        latents = torch.from_numpy(cells.latents)
        return latents.view(torch.bfloat16) if self.config.dtype == 'bfloat16' else latents

    def _check(self, seen: _Seen) -> None:
        grid = (len(seen.cameras), seen.cameras.height, seen.cameras.width)
        if seen.latents.shape != (grid[0], self.config.channels, *grid[1:]):
            raise ValueError(
                f'latents are {tuple(seen.latents.shape)}; {grid[0]} cameras of {grid[1]}x{grid[2]} '
                f'cells and {self.config.channels} channels were expected'
            )
        for name in ('depth', 'valid', 'confidence'):
            if getattr(seen, name).shape != grid:
                raise ValueError(f'{name} is {tuple(getattr(seen, name).shape)}, not {grid}')
        for good, wrong in (
            (torch.isfinite(seen.depth) & (seen.depth > 0), 'a cell without depth cannot be kept'),
            (torch.isfinite(seen.latents).all(dim=1), 'latents are not finite'),
            (
                (seen.confidence >= 0) & (seen.confidence <= 1),
                'confidence is not between 0 and 1',
            ),
        ):
            bad = seen.valid & ~good
            if bad.any():
                raise ValueError(f'camera, row, column {bad.nonzero()[0].tolist()}: {wrong}')

    def _now(self, cameras: Cameras) -> np.ndarray:
        """The cameras' times as seconds since the memory's origin."""
        return (cameras.times.double().cpu() - (self._origin or 0.0)).float().numpy()

    def _reader_on(self, device: torch.device) -> Callable[..., Readout]:
        if device.type != 'cuda':
            return cpu_reader.readout
        # Triton comes with a torch that knows GPUs, and with no other
        from mirage_model.memory.gpu_reader import GpuReader

        if self._gpu is None or self._gpu.device != device:
            self._gpu = GpuReader(device)
        return self._gpu.readout

    def _observe(self, store: Store, seen: _Seen) -> int:
        """Add what cameras saw."""
        cells = self._cells(seen, first=store.written, observed=True)
        store.written += len(cells)
        camera = seen.valid.nonzero()[:, 0].numpy()
        return store.insert(cells, camera, voxel=self.config.voxel, prefer=self.config.prefer)

    def _imagine(self, store: Store, seen: _Seen) -> int:
        """Add what one camera imagined where it is shown nothing, or too coarse a cell, and hides
        nothing observed; drop the imagined cells that are too coarse and would go on being shown.
        """
        views, config, depth = Views.of(seen.cameras), self.config, seen.depth
        # the observed surface has holes where it was seen from farther away
        whole = config.rule(splat_size=max(3, config.splat_size))
        surface = cpu_reader.observed_surface(store, views, whole)
        rank = depth + depth * config.tolerance
        valid = seen.valid & ~(surface.isfinite() & (rank < surface))
        shown = None
        if config.finer:
            shown = cpu_reader.nearest(store, views, config.rule())
            size = torch.from_numpy(cpu_reader.sizes(shown)).view_as(depth)
            valid &= size > config.finer * (depth / _focal(seen.cameras))
        cells = self._cells(replace(seen, valid=valid), first=store.written, observed=False)
        store.written += len(cells)
        if config.voxel and len(cells):
            free = ~store.in_observed_voxel(cells.points, config.voxel)
            cells = cells.take(free)
            valid = valid.masked_scatter(valid, torch.from_numpy(free))
        if shown is not None:
            own = rank.numpy().reshape(1, -1)
            hidden = cpu_reader.imagined(shown) & (cpu_reader.ranks(shown) < own)
            hidden &= valid.numpy().reshape(1, -1)
            for place, rows in cpu_reader.winners(shown, hidden).items():
                store.put(place, store.block(place).take(~rows))
        # what is added where nothing is shown takes nobody's place
        return store.insert(
            cells,
            np.zeros(len(cells), np.int64),
            voxel=config.voxel,
            prefer=config.prefer,
            displace=not config.finer,
        )

    def _cells(self, seen: _Seen, *, first: int, observed: bool) -> Cells:
        """The kept cells in the order of camera, row and column, numbered from ``first`` on."""
        cameras, depth, valid = seen.cameras, seen.depth, seen.valid
        time = (cameras.times.double() - self._origin).float()[:, None, None].expand_as(depth)
        position = unproject(torch.where(valid, depth, 1.0), cameras)[valid]
        points = torch.cat(
            [position, (depth / _focal(cameras))[valid][:, None]], dim=1
        ).T.contiguous()
        kept = seen.latents.to(getattr(torch, self.config.dtype)).movedim(1, -1)[valid]
        serial = first + np.arange(len(kept))
        order = (LATEST - serial).astype(np.uint32)
        return Cells(
            points=points.numpy(),
            order=order if observed else order | IMAGINED,
            written=torch.stack([depth[valid], time[valid]]).numpy(),
            confidence=(seen.confidence[valid] * 255).round().byte().numpy(),
            latents=_bits(kept),
        )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a write is given, on the CPU."""

    latents: Float[Tensor, 'n c h w']
    depth: Float[Tensor, 'n h w']
    confidence: Float[Tensor, 'n h w']
    cameras: Cameras
    valid: Bool[Tensor, 'n h w']

    def __getitem__(self, index: slice) -> _Seen:
        return _Seen(**{name: value[index] for name, value in vars(self).items()})


def _focal(cameras: Cameras) -> Float[Tensor, 'n 1 1']:
    """Cells across a metre that is a metre away."""
    return cameras.K[:, [0, 1], [0, 1]].prod(dim=-1).sqrt()[:, None, None]


_BITS = {'bfloat16': np.dtype(np.uint16), 'float32': np.dtype(np.float32)}


def _bits(latents: Float[Tensor, 'm c']) -> np.ndarray:
    """The latents as the store holds them: NumPy has no bfloat16."""
    if latents.dtype == torch.bfloat16:
        return latents.view(torch.int16).numpy().view(np.uint16)
    return latents.numpy()
