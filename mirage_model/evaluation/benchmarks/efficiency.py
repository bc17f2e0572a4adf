"""Measure time and size of all memories along rollouts: ``mirage bench efficiency``.

Rollouts of the embedded model are run whole with each memory in turn. At the size of
Wan2.2-TI2V-5B, where no CPU runs a rollout, they are composed: the memories are run whole on the
cameras and depth of a corridor, encoding and decoding are timed once for each shape with the real
architecture and random weights. The denoiser and the depth estimator are left out there. Each
finished timing is a file, so that an interrupted benchmark continues; remove the files to measure
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
import json
import os
from pathlib import Path
import platform
from time import perf_counter
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras, directions, resized
from mirage_model.clip import Clip
from mirage_model.evaluation.benchmarks.efficiency_page import (
    Results,
    Row,
    ratio_table,
    table,
    write_page,
)
from mirage_model.evaluation.config import EfficiencyConfig
from mirage_model.evaluation.rollout_quality import imagine, trajectory
from mirage_model.io import write_json
from mirage_model.memory import Memory, Pixels, Readout
from mirage_model.memory.depth_grid import depth_to_grid
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import MEMORIES, create_memory
from mirage_model.model.checkpoint import EMBEDDED, Model, load_model
from mirage_model.model.codec import WAN22_VAE, Codec

TRAJECTORY = 5
"""Index in the manifest of `mirage evaluate tiny`: out and back, which moves in each chunk."""
WALL, CEILING, END = 1.5, 1.3, 40.0
"""The corridor [m]: distance of a side wall, of ceiling and floor, and of the end from the start.
"""


# timing one memory


class TimedMemory:
    """A memory that times its readouts and writes.

    Attributes:
        laps: For each chunk, seconds by name ('read', 'masks', 'write', 'whole') and sizes. The
            first readout begins the first lap; each write after it ends a lap and begins another.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.takes_latents = memory.takes_latents
        self.laps: list[dict[str, Any]] = []
        self._seconds = {'read': 0.0, 'masks': 0.0, 'write': 0.0}
        self._began: float | None = None

    def write(self, *args: Any, **kwargs: Any) -> int:
        with self._count('write'):
            added = self.memory.write(*args, **kwargs)
        if self._began is not None:
            sizes = {'nbytes': self.nbytes, 'index_nbytes': self.index_nbytes, 'points': len(self)}
            self.laps.append(self._seconds | {'whole': perf_counter() - self._began} | sizes)
            self._begin()
        return added

    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        if self._began is None:
            self._begin()
        with self._count('read' if latents else 'masks'):
            return self.memory.readout(cameras, latents=latents)

    def fork(self) -> TimedMemory:
        return TimedMemory(self.memory.fork())

    def __len__(self) -> int:
        return len(self.memory)

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    @property
    def index_nbytes(self) -> int:
        return self.memory.index_nbytes

    def _begin(self) -> None:
        self._seconds, self._began = dict.fromkeys(self._seconds, 0.0), perf_counter()

    @contextmanager
    def _count(self, name: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self._seconds[name] += perf_counter() - start


# rollouts that are run whole


def rollout_rows(model: Model, clip: Clip, name: str, run: int) -> list[Row]:
    """Imagine along a clip's cameras from its first frame; return a row for each chunk."""
    config = MemoryConfig(channels=model.codec.channels, splat_size=model.config.splat_size)
    memory = TimedMemory(create_memory(name, config, model.codec))
    imagine(model, clip, memory, seed=0)
    rows = []
    for chunk, lap in enumerate(memory.laps):
        whole = lap.pop('whole')
        rest = whole - lap['read'] - lap['masks'] - lap['write']
        rows.append(
            Row(memory=name, run=run, chunk=chunk + 1, frames=model.new_frames, rest=rest, **lap)
        )
    return rows


def run_whole(model: Model, clip: Clip, *, run: int) -> Iterator[list[Row]]:
    """Run all memories in turn, after a short rollout of each that compiles its kernels."""
    names = ('frames', 'cameras', 'depth', 'sky', 'moving')
    short = replace(
        clip, **{name: getattr(clip, name)[: model.config.chunk_frames] for name in names}
    )
    for name in MEMORIES:
        rollout_rows(model, short, name, 0)
    for name in MEMORIES:
        yield rollout_rows(model, clip, name, run)


# rollouts that are composed of single timings


@dataclass(frozen=True, kw_only=True)
class ComposedSize:
    """Frames, codec and chunks of a rollout that is composed."""

    name: str = 'wan22_5b'
    vae: dict = field(default_factory=lambda: WAN22_VAE)
    height: int = 704
    width: int = 1280
    chunk_frames: int = 33
    step: float = 0.025
    """Distance between frames [m]."""
    splat_size: int = 3

    @property
    def new_frames(self) -> int:
        return self.chunk_frames - 1


class CountingEncoder:
    """An encoder of the codec's shapes that counts frames instead of encoding them."""

    def __init__(self, codec: Codec) -> None:
        self.channels, self.spatial_stride = codec.channels, codec.spatial_stride
        self.encoded = 0

    def encode_images(self, frames: Float[Tensor, 'n 3 H W']) -> Float[Tensor, 'n c h w']:
        self.encoded += len(frames)
        n, _, height, width = frames.shape
        stride = self.spatial_stride
        return torch.zeros(n, self.channels, height // stride, width // stride)


def corridor_cameras(size: ComposedSize, frames: int, *, start: int = 0) -> Cameras:
    """Return cameras at 16 Hz, 90 degrees wide, down the corridor from frame ``start`` on."""
    height, width = size.height, size.width
    K = torch.tensor(
        [[width / 2, 0, (width - 1) / 2], [0, width / 2, (height - 1) / 2], [0, 0, 1]]
    )
    index = torch.arange(start, start + frames)
    world_from_camera = torch.eye(4).repeat(frames, 1, 1)
    world_from_camera[:, 2, 3] = size.step * index
    return Cameras(
        K=K.expand(frames, 3, 3),
        world_from_camera=world_from_camera,
        times=index.double() / 16,
        height=height,
        width=width,
    )


def corridor_depth(cameras: Cameras) -> Float[Tensor, 'n h w']:
    """Return the depth of cameras that look straight down the corridor."""
    x, y, _ = directions(cameras).unbind(dim=-1)
    ahead = END - cameras.world_from_camera[:, 2, 3]
    sides = torch.minimum(WALL / x.abs(), CEILING / y.abs())
    return torch.minimum(sides, ahead[:, None, None])


def memory_laps(size: ComposedSize, name: str, chunks: int) -> list[dict[str, Any]]:
    """Read and write a memory as a rollout does; return `TimedMemory.laps`.

    Each lap also has 'encoded_to_read', the frames that the readout would have encoded.
    """
    codec = Codec.untrained(size.vae, device='meta')
    encoder = CountingEncoder(codec)
    config = MemoryConfig(channels=codec.channels, splat_size=size.splat_size)
    memory = TimedMemory(create_memory(name, config, encoder))
    h, w = size.height // codec.spatial_stride, size.width // codec.spatial_stride
    stride = codec.temporal_stride
    generator = torch.Generator().manual_seed(0)
    count = size.new_frames // stride
    latents = torch.randn(count, codec.channels, h, w, generator=generator)
    frames = torch.rand(count, 3, size.height, size.width, generator=generator)

    def write(cameras: Cameras, *, observed: bool) -> None:
        depth = corridor_depth(cameras)
        on_grid, has_depth, edge = depth_to_grid(depth, h, w)
        memory.write(
            latents[: len(cameras)] if memory.takes_latents else None,
            on_grid,
            resized(cameras, h, w),
            valid=has_depth & ~edge,
            observed=observed,
            pixels=Pixels(frames=frames[: len(cameras)], depth=depth),
        )

    write(corridor_cameras(size, 1), observed=True)
    for chunk in range(chunks):
        encoder.encoded = 0
        cameras = corridor_cameras(size, size.chunk_frames, start=chunk * size.new_frames)
        memory.readout(resized(cameras[::stride], h, w))
        encoded = encoder.encoded
        memory.readout(resized(cameras[1:], h, w), latents=False)
        assert encoder.encoded == encoded, 'masks need no latents'
        write(cameras[stride::stride], observed=False)
        memory.laps[-1]['encoded_to_read'] = encoded
    return memory.laps


def timings(size: ComposedSize, chunks: int, runs: int) -> dict[str, Callable[[], object]]:
    """Return everything to be timed, by a name such as 'latent-0' or 'decode-2-0'.

    Decoding is timed for the first latent frame and for two: each further latent frame takes what
    the second takes.
    """
    stride = size.vae['scale_factor_spatial']
    frames = torch.rand(1, 3, size.height, size.width)
    latents = torch.randn(1, size.vae['z_dim'], 2, size.height // stride, size.width // stride)
    codec: list[Codec] = []

    def laps(name: str) -> list[dict[str, Any]]:
        small = replace(size, height=4 * stride, width=4 * stride)
        memory_laps(small, name, 1)  # compiles the kernels
        return memory_laps(size, name, chunks)

    def seconds(work: Callable[[Codec], object]) -> float:
        if not codec:
            codec.append(Codec.untrained(size.vae))
        start = perf_counter()
        work(codec[0])
        return perf_counter() - start

    result: dict[str, Callable[[], object]] = {}
    for run in range(runs):
        result |= {f'{name}-{run}': partial(laps, name) for name in MEMORIES}
        result |= {
            f'encode-{run}': partial(seconds, lambda c: c.encode_images(frames)),
            f'decode-1-{run}': partial(seconds, lambda c: c.decode(latents[:, :, :1])),
            f'decode-2-{run}': partial(seconds, lambda c: c.decode(latents)),
        }
    return result


def composed_rows(size: ComposedSize, timed: dict[str, Any], runs: int) -> list[Row]:
    """Add up the timings of each run; return a row for each chunk."""
    rows = []
    later = size.new_frames // size.vae['scale_factor_temporal']
    for run in range(runs):
        encode, first, two = (timed[f'{n}-{run}'] for n in ('encode', 'decode-1', 'decode-2'))
        rest = first + later * (two - first) + encode
        for name in MEMORIES:
            for chunk, lap in enumerate(timed[f'{name}-{run}']):
                parts = {
                    key: lap[key] for key in ('masks', 'write', 'nbytes', 'index_nbytes', 'points')
                }
                read = lap['read'] + lap['encoded_to_read'] * encode
                rows.append(
                    Row(
                        memory=name,
                        run=run,
                        chunk=chunk + 1,
                        frames=size.new_frames,
                        read=read,
                        rest=rest,
                        **parts,
                    )
                )
    return rows


# results


def once(path: Path, work: Callable[[], object]) -> dict[str, Any]:
    """Return the content of a timing's file; run ``work`` and write it where it is absent."""
    if not path.exists():
        print(f'{path.stem}: now', flush=True)
        content = {'machine': machine(), 'value': work()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    return json.loads(path.read_text())


def machine() -> dict[str, Any]:
    """Return what the timings depend on, and the date."""
    models = [
        line.split(':')[1].strip()
        for line in Path('/proc/cpuinfo').read_text().splitlines()
        if line.startswith('model name')
    ]
    return {
        'processor': models[0] if models else platform.machine(),
        'cores': os.cpu_count() or 0,
        'threads': torch.get_num_threads(),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30),
        'torch': torch.__version__,
        'date': date.today().isoformat(),
    }


def same_machine(folder: Path, machines: list[dict]) -> dict:
    """Return the machine of all timings and their last date.

    Raises ValueError for several machines.
    """
    alike = [{key: value for key, value in each.items() if key != 'date'} for each in machines]
    if any(each != alike[0] for each in alike):
        raise ValueError(f'{folder}: has timings of several machines, remove it: {alike}')
    return alike[0] | {'date': max(each['date'] for each in machines)}


def measure_whole(folder: Path, model_folder: Path, chunks: int, runs: int) -> Results:
    """Run the rollouts of a model folder, all memories in turn in each run."""
    model = load_model(model_folder)
    config = model.config

    def work(run: int) -> list[dict]:
        clip = trajectory(TRAJECTORY, chunks * model.new_frames + 1)
        return [asdict(row) for rows in run_whole(model, clip, run=run) for row in rows]

    folder = folder / f'{config.name}-{model.sha256[:12]}-{chunks}'
    timed = [once(folder / f'run-{run}.json', partial(work, run)) for run in range(runs)]
    return Results(
        size=config.name,
        about=(
            f'{config.name}, weights {model.sha256}. {config.height}x{config.width} frames, '
            f'{model.codec.channels} channels, {config.steps} steps, perception of the model. '
            f'Each rollout is run whole, {runs} runs of all memories in turn, along trajectory '
            f'{TRAJECTORY} of `mirage evaluate tiny`, out and back.'
        ),
        machine=same_machine(folder, [each['machine'] for each in timed]),
        composed=False,
        rows=[Row(**row) for each in timed for row in each['value']],
    )


def measure_composed(folder: Path, size: ComposedSize, chunks: int, runs: int) -> Results:
    """Take the timings of a composed size and add them up."""
    folder = folder / f'{size.name}-{chunks}'
    timed = {
        name: once(folder / f'{name}.json', work)
        for name, work in timings(size, chunks, runs).items()
    }
    return Results(
        size=size.name,
        about=(
            f'**Composed, not run.** {size.height}x{size.width} frames, chunks of '
            f'{size.chunk_frames}. The memories were run whole on {chunks} chunks along a '
            f'corridor, {size.step * size.new_frames:g} m a chunk, with exact depth. Encoding a '
            'frame, and decoding the first and a further latent frame, were timed with the real '
            f'architecture of the codec and random weights, {runs} runs each. The times are added '
            'as often as a rollout needs them. The denoiser, which all memories share, and the '
            'depth estimator are left out.'
        ),
        machine=same_machine(folder, [each['machine'] for each in timed.values()]),
        composed=True,
        rows=composed_rows(size, {name: each['value'] for name, each in timed.items()}, runs),
    )


def main(config: EfficiencyConfig, size: ComposedSize = ComposedSize()) -> int:
    """Take the timings that are missing, print the tables and write the page."""
    every = []
    if 'embedded' in config.sizes:
        model = config.model or EMBEDDED
        every.append(measure_whole(config.out, model, config.chunks, config.runs))
    if 'wan22_5b' in config.sizes:
        every.append(measure_composed(config.out, size, config.chunks, config.runs))
    for results in every:
        print(f'\n{results.size}\n{table(results)}\n\n{ratio_table(results)}')
    if len(every) < 2:
        print('\nthe page is written when both sizes are measured')
        return 0
    write_page(config.docs, every)
    print(f'\n{config.docs / "efficiency.md"}')
    return 0
