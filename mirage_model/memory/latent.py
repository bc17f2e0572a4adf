"""The latent spatial memory: the model's own latents, each at a point of the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
import math
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args

from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, unproject
from mirage_model.memory import Pixels, Readout, cpu_reader, serialization
from mirage_model.memory.block_store import BlockStore
from mirage_model.memory.coverage import Coverage, CoverageEstimator
from mirage_model.memory.eviction import EvictionPolicy, MemoryLimits, evict, page_out
from mirage_model.memory.points import (
    IMAGINED_BIT,
    MAX_SERIAL,
    LatentPoints,
    concatenate,
    empty_points,
    point_nbytes,
)
from mirage_model.memory.visibility import CameraArrays, VisibilityRule

if TYPE_CHECKING:
    from mirage_model.memory.gpu_reader import GpuReader

MAX_DEPTH = 1e6
"""Metres. Depths of competing points stay far below the range of float32."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(MemoryLimits):
    """Configuration of a latent memory."""

    channels: int
    """Channels of the latents."""

    splat_size: int = 1
    """Largest number of cells across that a point covers when read. Odd; 1 is one cell a point."""

    voxel: float = 1.5
    """Edge of a merging voxel as a multiple of the points' size. 0 merges nothing."""

    finer: float = 2.0
    """Size ratio from which imagination replaces a coarser visible point. 0 replaces all."""

    tolerance: float = 0.05
    """Share of the depth within which two surfaces count as the same."""

    near: float = 0.05
    """Smallest depth of a visible point, metres."""

    far: float = MAX_DEPTH
    """Depth from which points are not visible, metres."""

    dtype: Literal['bfloat16', 'float32'] = 'bfloat16'
    """Precision of the stored latents."""

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f'channels: {self.channels}, must be at least 1')
        if self.splat_size < 1 or self.splat_size % 2 == 0:
            raise ValueError(f'splat_size: {self.splat_size}, must be a positive odd number')
        for name in ('voxel', 'finer'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'{name}: {getattr(self, name)}, must be finite and not negative')
        for name in ('capacity', 'resident'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name}: {getattr(self, name)}, must not be negative')
        if self.policy not in get_args(EvictionPolicy):
            raise ValueError(f'policy: {self.policy!r}, must be one of {get_args(EvictionPolicy)}')
        if self.dtype not in _NUMPY_DTYPES:
            raise ValueError(f'dtype: {self.dtype!r}, must be one of {sorted(_NUMPY_DTYPES)}')
        if self.resident and not (self.folder and Path(self.folder).is_dir()):
            raise ValueError(
                f'folder: {self.folder!r} is not a folder, a bound on resident points needs one'
            )
        if not 0 <= self.tolerance < 1:
            raise ValueError(f'tolerance: {self.tolerance}, must be in 0..1, 1 excluded')
        if not 0 < self.near < self.far <= MAX_DEPTH:
            raise ValueError(
                f'near and far: {self.near} and {self.far}, '
                f'must be 0 < near < far <= {MAX_DEPTH:g}'
            )

    def rule(self, *, splat_size: int | None = None) -> VisibilityRule:
        """Return the visibility rule, with another splat size if given."""
        return VisibilityRule(
            splat_size=splat_size or self.splat_size,
            tolerance=self.tolerance,
            near=self.near,
            far=self.far,
        )


class LatentMemory:
    """Latent points in a `BlockStore`, read by a `VisibilityRule`.

    - A write of observations first removes the points in the free space that its cameras see.
    - A write of imagination, one camera after another, enters where nothing or only a point
      ``finer`` times as coarse is visible, never in front of an observed surface and never in the
      voxel of an observed point. It removes imagined points that are too coarse and would hide the
      new ones.
    - Points stay in RAM or in files. For cameras on a GPU, blocks that were in view are copied
      there.
    - One thread may write while others read. A reader sees a write whole or not at all.
    """

    takes_latents = True

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self._store = BlockStore()
        self._gpu: GpuReader | None = None
        self._estimator = CoverageEstimator()
        self._origin: float | None = None
        self._writing = Lock()

    def __len__(self) -> int:
        return len(self._store)

    @property
    def nbytes(self) -> int:
        """Bytes of the points, in memory and in files."""
        return len(self._store) * self._point_nbytes

    @property
    def resident_nbytes(self) -> int:
        """Bytes of the points that are not in files."""
        return self._store.resident * self._point_nbytes

    @property
    def index_nbytes(self) -> int:
        """Bytes of the block directory, and of the counts for `coverage` once it was called."""
        return self._store.index_nbytes + self._estimator.nbytes

    @property
    def _dtype(self) -> np.dtype:
        return _NUMPY_DTYPES[self.config.dtype]

    @property
    def _point_nbytes(self) -> int:
        return point_nbytes(self.config.channels, self._dtype)

    def fork(self) -> LatentMemory:
        """Return a memory with the same points, shared until one of the two changes them."""
        branch = LatentMemory(self.config)
        with self._writing:
            branch._store, branch._gpu = self._store, self._gpu
            branch._origin = self._origin
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
        """Write cells as `Memory.write`. Replaced points do not reduce the count that is returned.

        Cells at ``MAX_DEPTH`` or beyond are left out.
        """
        if latents is None:
            raise ValueError('latents: missing, this memory holds latents')
        confidence = torch.ones_like(depth) if confidence is None else confidence
        frames = _Frames(
            latents=latents.cpu(),
            depth=depth.cpu().float(),
            confidence=confidence.cpu().float(),
            cameras=cameras.to('cpu'),
            valid=valid.cpu(),
        )
        self._check(frames)
        frames = replace(frames, valid=frames.valid & (frames.depth < MAX_DEPTH))
        with self._writing:
            if self._origin is None:
                self._origin = float(frames.cameras.times[0])
            store = self._store.draft()
            if store.next_serial + frames.valid.numel() > MAX_SERIAL:
                store.renumber()
            if observed:
                added = self._write_observed(store, frames)
            else:
                added = 0
                for k in range(len(frames.cameras)):
                    added += self._write_imagined(store, frames[k : k + 1])
            self._enforce_limits(store, frames.cameras.world_from_camera[-1, :3, 3].numpy())
            self._store = store
        return added

    @torch.no_grad()
    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        """Return what the cameras see, as `Memory.readout`."""
        store, device = self._store, cameras.K.device
        return self._reader_on(device)(
            store,
            CameraArrays.from_cameras(cameras.to('cpu')),
            self.config.rule(),
            self._since_origin(cameras),
            channels=self.config.channels if latents else 0,
            half=self.config.dtype == 'bfloat16',
        )

    def sample_points(
        self, most: int
    ) -> tuple[Float[Tensor, 'm 3'], Float[Tensor, 'm c'], Bool[Tensor, 'm']]:
        """Return positions, latents and ``observed`` of about ``most`` points, evenly chosen."""
        blocks = self._store.blocks()
        step = max(1, math.ceil(len(self._store) / most))
        parts, first = [empty_points(self.config.channels, self._dtype)], 0
        for block in blocks:
            parts.append(block.take(slice(first, None, step)))
            first = (first - len(block)) % step
        points = concatenate(parts)
        positions = torch.from_numpy(points.xyz_size[:3].T.copy())
        return positions, self._latents(points).float(), torch.from_numpy(points.observed)

    def coverage(self, cameras: Cameras) -> Coverage:
        """Return an estimate of `Coverage.from_readout` for the cameras, without a readout."""
        return self._estimator.coverage(
            self._store, cameras.to('cpu'), self.config.rule(), self._since_origin(cameras)
        )

    @torch.no_grad()
    def transform(self, new_from_old: Float[Tensor, '4 4']) -> None:
        """Apply a rigid transform to all points, as after a jump of the world frame.

        Points that then share a voxel are not merged. Forks do not change.
        """
        with self._writing:
            points = self._store.points()
            if points is None:
                return
            matrix = new_from_old.double().numpy()
            xyz_size = points.xyz_size.copy()
            xyz_size[:3] = matrix[:3, :3] @ points.xyz_size[:3] + matrix[:3, 3:]
            store = BlockStore()
            store.insert_unmerged(replace(points, xyz_size=xyz_size), voxel=self.config.voxel)
            store.next_serial = self._store.next_serial
            if self.config.resident:
                page_out(store, self.config.resident, Path(self.config.folder), matrix[:3, 3])
            self._store = store

    def release(self) -> None:
        """Free the copies on the GPU. A later readout there copies its blocks again."""
        self._gpu = None

    def save(self, path: Path, *, attached: Mapping[str, Tensor] | None = None) -> None:
        """Write the memory to a safetensors file; replace an existing file atomically.

        ``attached`` tensors are stored in the same file, for `load_attached`.
        """
        store, origin = self._store, self._origin
        points = store.points() or empty_points(self.config.channels, self._dtype)
        tensors = {
            'position': torch.from_numpy(points.xyz_size[:3].T.copy()),
            'size': torch.from_numpy(points.xyz_size[3].copy()),
            'depth': torch.from_numpy(points.depth_time[0].copy()),
            'time': torch.from_numpy(points.depth_time[1].copy()),
            'confidence': torch.from_numpy(points.confidence),
            'observed': torch.from_numpy(points.observed),
            'serial': torch.arange(len(points), dtype=torch.int32),
            'latents': self._latents(points),
        }
        description = {'config': asdict(self.config), 'origin': origin}
        serialization.save(path, tensors, description, attached or {})

    @classmethod
    def load(cls, path: Path, limits: MemoryLimits | None = None) -> LatentMemory:
        """Return the memory that a file holds.

        Args:
            path: File that `save` wrote.
            limits: Limits to apply instead of those in the file.

        Raises:
            ValueError: If the file is damaged. The message names it.
        """
        return cls.load_attached(path, limits)[0]

    @classmethod
    def load_attached(
        cls, path: Path, limits: MemoryLimits | None = None
    ) -> tuple[LatentMemory, dict[str, Tensor]]:
        """Return the memory that a file holds, as `load`, and the tensors attached to it."""
        tensors, description, attached = serialization.load(path)
        try:
            config = _upgraded(description['config'])
            memory = cls(MemoryConfig(**{**config, **({} if limits is None else asdict(limits))}))
            origin = description['origin']
            memory._origin = None if origin is None else float(origin)
            if not math.isfinite(memory._origin or 0.0):
                raise ValueError(f'origin: {memory._origin}, must be finite')
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path}: the description is damaged: {error}') from error
        latents = tensors['latents']
        expected = (memory.config.channels, getattr(torch, memory.config.dtype))
        if (latents.shape[1], latents.dtype) != expected:
            raise ValueError(
                f'{path}: latents are {latents.dtype} with {latents.shape[1]} channels, '
                f'expected {expected[1]} with {expected[0]}'
            )
        order = (MAX_SERIAL - tensors['serial'].numpy().astype(np.int64)).astype(np.uint32)
        xyz_size = torch.cat([tensors['position'], tensors['size'][:, None]], dim=1)
        points = LatentPoints(
            xyz_size=xyz_size.T.contiguous().numpy(),
            order=np.where(tensors['observed'].numpy(), order, order | IMAGINED_BIT),
            depth_time=torch.stack([tensors['depth'], tensors['time']]).numpy(),
            confidence=tensors['confidence'].numpy(),
            latents=_bits(latents),
        )
        store = memory._store
        store.insert_unmerged(points, voxel=memory.config.voxel)
        last = np.zeros(3)
        if len(points):
            store.next_serial = 1 + int(tensors['serial'].max())
            last = points.xyz_size[:3, tensors['serial'].argmax()]
        memory._enforce_limits(store, last)
        return memory, attached

    def _enforce_limits(self, store: BlockStore, centre: Float[np.ndarray, '3']) -> None:
        """Evict and page out blocks. ``centre`` is the last camera's position in the world."""
        if self.config.capacity:
            evict(store, self.config.capacity, self.config.policy, centre)
        if self.config.resident:
            page_out(store, self.config.resident, Path(self.config.folder), centre)

    def _latents(self, points: LatentPoints) -> Float[Tensor, 'm c']:
        latents = torch.from_numpy(points.latents)
        return latents.view(torch.bfloat16) if self.config.dtype == 'bfloat16' else latents

    def _check(self, frames: _Frames) -> None:
        grid = (len(frames.cameras), frames.cameras.height, frames.cameras.width)
        shapes = {
            'latents': (grid[0], self.config.channels, *grid[1:]),
            'depth': grid,
            'valid': grid,
            'confidence': grid,
        }
        for name, expected in shapes.items():
            shape = tuple(getattr(frames, name).shape)
            if shape != expected:
                raise ValueError(f'{name}: shape {shape}, expected {expected}')
        confidence = frames.confidence
        for name, good, problem in (
            (
                'depth',
                torch.isfinite(frames.depth) & (frames.depth > 0),
                'not finite and positive, exclude the cell from valid',
            ),
            ('latents', torch.isfinite(frames.latents).all(dim=1), 'not finite'),
            ('confidence', (confidence >= 0) & (confidence <= 1), 'not in 0..1'),
        ):
            bad = frames.valid & ~good
            if bad.any():
                at = bad.nonzero()[0].tolist()
                raise ValueError(f'{name} at camera, row, column {at}: {problem}')

    def _since_origin(self, cameras: Cameras) -> Float[np.ndarray, 'n']:
        """Return the cameras' times in seconds since the memory's origin."""
        return (cameras.times.double().cpu() - (self._origin or 0.0)).float().numpy()

    def _reader_on(self, device: torch.device) -> Callable[..., Readout]:
        if device.type != 'cuda':
            return cpu_reader.readout
        # only a torch with CUDA brings Triton
        from mirage_model.memory.gpu_reader import GpuReader

        if self._gpu is None or self._gpu.device != device:
            self._gpu = GpuReader(device)
        return self._gpu.readout

    def _write_observed(self, store: BlockStore, frames: _Frames) -> int:
        """Remove the points in free space, then add the observed points."""
        arrays = CameraArrays.from_cameras(frames.cameras)
        free = cpu_reader.in_free_space(self._store, arrays, frames.depth, self.config.rule())
        for slot, rows in free.items():
            store.put(slot, store.block(slot).take(~rows))
        points = self._points(frames, first=store.next_serial, observed=True)
        store.next_serial += len(points)
        camera = frames.valid.nonzero()[:, 0].numpy()
        return store.insert(points, camera, voxel=self.config.voxel)

    def _write_imagined(self, store: BlockStore, frames: _Frames) -> int:
        """Add the points of one imagined frame, and remove imagined points that are too coarse."""
        arrays, config, depth = (
            CameraArrays.from_cameras(frames.cameras),
            self.config,
            frames.depth,
        )
        # splats close the holes of a surface that was observed from farther away
        closed = config.rule(splat_size=max(3, config.splat_size))
        surface = cpu_reader.observed_depth(store, arrays, closed)
        rank = depth + depth * config.tolerance
        valid = frames.valid & ~(surface.isfinite() & (rank < surface))
        visible = None
        if config.finer:
            visible = cpu_reader.nearest(store, arrays, config.rule())
            size = torch.from_numpy(visible.size()).view_as(depth)
            valid &= size > config.finer * (depth / _focal(frames.cameras))
        points = self._points(
            replace(frames, valid=valid), first=store.next_serial, observed=False
        )
        store.next_serial += len(points)
        if config.voxel and len(points):
            unobserved = ~store.in_observed_voxel(points.xyz_size, config.voxel)
            points = points.take(unobserved)
            valid = valid.masked_scatter(valid, torch.from_numpy(unobserved))
        if visible is not None:
            too_coarse = visible.imagined & (visible.rank_depth < rank.numpy().reshape(1, -1))
            too_coarse &= valid.numpy().reshape(1, -1)
            for slot, rows in visible.rows_by_block(too_coarse).items():
                store.put(slot, store.block(slot).take(~rows))
        return store.insert(
            points,
            np.zeros(len(points), np.int64),
            voxel=config.voxel,
            # a point that enters where nothing is visible replaces none
            displace=not config.finer,
        )

    def _points(self, frames: _Frames, *, first: int, observed: bool) -> LatentPoints:
        """Return the points of valid cells by camera, row and column, numbered from ``first``."""
        assert self._origin is not None
        cameras, depth, valid = frames.cameras, frames.depth, frames.valid
        time = (cameras.times.double() - self._origin).float()[:, None, None].expand_as(depth)
        position = unproject(torch.where(valid, depth, 1.0), cameras)[valid]
        size = (depth / _focal(cameras))[valid]
        latents = frames.latents.to(getattr(torch, self.config.dtype)).movedim(1, -1)[valid]
        serial = first + np.arange(len(latents))
        order = (MAX_SERIAL - serial).astype(np.uint32)
        return LatentPoints(
            xyz_size=torch.cat([position, size[:, None]], dim=1).T.contiguous().numpy(),
            order=order if observed else order | IMAGINED_BIT,
            depth_time=torch.stack([depth[valid], time[valid]]).numpy(),
            confidence=(frames.confidence[valid] * 255).round().byte().numpy(),
            latents=_bits(latents),
        )


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """Arguments of a write, on the CPU."""

    latents: Float[Tensor, 'n c h w']
    depth: Float[Tensor, 'n h w']
    confidence: Float[Tensor, 'n h w']
    cameras: Cameras
    valid: Bool[Tensor, 'n h w']

    def __getitem__(self, index: slice) -> _Frames:
        return _Frames(**{name: value[index] for name, value in vars(self).items()})


def _upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """Return a saved configuration with the field names of this version."""
    config = dict(config)
    config.pop('prefer', None)
    if 'footprint' in config:
        config['splat_size'] = config.pop('footprint')
    return config


def _focal(cameras: Cameras) -> Float[Tensor, 'n 1 1']:
    """Return the focal length of each camera, in cells."""
    return cameras.K[:, [0, 1], [0, 1]].prod(dim=-1).sqrt()[:, None, None]


_NUMPY_DTYPES: dict[str, np.dtype] = {
    'bfloat16': np.dtype(np.uint16),
    'float32': np.dtype(np.float32),
}


def _bits(latents: Float[Tensor, 'm c']) -> np.ndarray:
    """Return latents as NumPy; bfloat16, which NumPy lacks, as its bits."""
    if latents.dtype == torch.bfloat16:
        return latents.view(torch.int16).numpy().view(np.uint16)
    return latents.numpy()
