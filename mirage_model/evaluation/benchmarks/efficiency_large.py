"""The same at sizes where no CPU runs a rollout: what it is made of, timed once per shape.

The memories are run whole, chunk after chunk, on the views of a drive down a corridor; encoding
and decoding are timed for single shapes with the real architecture and random weights, and rollouts
are composed of both. The denoiser, and what estimates depth, are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter

from jaxtyping import Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras, directions, resized
from mirage_model.evaluation.benchmarks.efficiency_rows import Clock, Row, TimedMemory
from mirage_model.memory import Pixels
from mirage_model.memory.depth_grid import depth_to_grid
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import MEMORIES, create_memory
from mirage_model.model.codec import WAN22_VAE, Codec

WALL, CEILING, END = 1.5, 1.3, 40.0
"""Of the corridor: metres to the side, above and below, and ahead of the start."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Frames, codec and chunks; every frame is ``step`` metres ahead of the one before."""

    name: str = 'wan22_5b'
    vae: dict = field(default_factory=lambda: WAN22_VAE)
    height: int = 704
    width: int = 1280
    chunk_frames: int = 33
    step: float = 0.025
    splat_size: int = 3

    @property
    def new_frames(self) -> int:
        return self.chunk_frames - 1


class CountingEncoder:
    """In the codec's place: of its sizes, it only counts the frames that it should encode."""

    def __init__(self, codec: Codec) -> None:
        self.channels, self.spatial_stride = codec.channels, codec.spatial_stride
        self.encoded = 0

    def encode_images(self, frames: Float[Tensor, 'n 3 H W']) -> Float[Tensor, 'n c h w']:
        self.encoded += len(frames)
        n, _, height, width = frames.shape
        stride = self.spatial_stride
        return torch.zeros(n, self.channels, height // stride, width // stride)


def drive(setting: Setting, frames: int, *, start: int = 0) -> Cameras:
    """Cameras of frames ``start`` and on, at the frames' resolution, at 16 Hz, 90 degrees wide."""
    height, width = setting.height, setting.width
    K = torch.tensor(
        [[width / 2, 0, (width - 1) / 2], [0, width / 2, (height - 1) / 2], [0, 0, 1]]
    )
    at = torch.arange(start, start + frames)
    poses = torch.eye(4).repeat(frames, 1, 1)
    poses[:, 2, 3] = setting.step * at
    return Cameras(
        K=K.expand(frames, 3, 3),
        world_from_camera=poses,
        times=at.double() / 16,
        height=height,
        width=width,
    )


def corridor_depth(cameras: Cameras) -> Float[Tensor, 'n h w']:
    """Depth of cameras that look straight down the corridor."""
    x, y, _ = directions(cameras).unbind(dim=-1)
    ahead = END - cameras.world_from_camera[:, 2, 3]
    sides = torch.minimum(WALL / x.abs(), CEILING / y.abs())
    return torch.minimum(sides, ahead[:, None, None])


def memory_laps(setting: Setting, name: str, chunks: int) -> list[dict]:
    """Every chunk of a rollout as the memory lives it: seconds, bytes, and frames to encode."""
    sizes = Codec.untrained(setting.vae, device='meta')
    encoder, clock = CountingEncoder(sizes), Clock()
    config = MemoryConfig(channels=sizes.channels, splat_size=setting.splat_size)
    memory = TimedMemory(create_memory(name, config, encoder), clock)
    h, w = (side // sizes.spatial_stride for side in (setting.height, setting.width))
    generator = torch.Generator().manual_seed(0)
    count = setting.new_frames // sizes.temporal_stride
    latents = torch.randn(count, sizes.channels, h, w, generator=generator)
    frames = torch.rand(count, 3, setting.height, setting.width, generator=generator)

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

    write(drive(setting, 1), observed=True)
    result = []
    for chunk in range(chunks):
        first = chunk * setting.new_frames
        encoder.encoded = 0
        every = drive(setting, setting.chunk_frames, start=first)
        memory.readout(resized(every[:: sizes.temporal_stride], h, w))
        read = encoder.encoded
        memory.readout(resized(every[1:], h, w), latents=False)
        assert encoder.encoded == read, 'masks need no latents'
        write(every[sizes.temporal_stride :: sizes.temporal_stride], observed=False)
        result.append(vars(memory.laps[-1]) | {'encoded_to_read': read})
    return result


def compiled_laps(setting: Setting, name: str, chunks: int) -> list[dict]:
    """`memory_laps` after a small one, so that no time goes into compiling."""
    stride = setting.vae['scale_factor_spatial']
    memory_laps(replace(setting, height=4 * stride, width=4 * stride), name, 1)
    return memory_laps(setting, name, chunks)


def codec_shapes(setting: Setting) -> dict[str, Callable[[Codec], object]]:
    """What is timed of the codec: one frame encoded, and the first one and two latent frames
    decoded: each further one, of four frames, takes what the second takes.
    """
    frames = torch.rand(1, 3, setting.height, setting.width)
    stride = setting.vae['scale_factor_spatial']
    grid = (setting.height // stride, setting.width // stride)
    latents = torch.randn(1, setting.vae['z_dim'], 2, *grid)
    return {
        'encode': lambda codec: codec.encode_images(frames),
        'decode-1': lambda codec: codec.decode(latents[:, :, :1]),
        'decode-2': lambda codec: codec.decode(latents),
    }


def timings(setting: Setting, chunks: int, runs: int) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by a name that says what and which run, cheapest first."""
    codec: list[Codec] = []

    def timed(work: Callable[[Codec], object]) -> float:
        if not codec:
            codec.append(Codec.untrained(setting.vae))
        start = perf_counter()
        work(codec[0])
        return perf_counter() - start

    result: dict[str, Callable[[], object]] = {}
    for run in range(runs):
        for name in MEMORIES:
            result[f'{name}-{run}'] = lambda name=name: compiled_laps(setting, name, chunks)
        for name, work in codec_shapes(setting).items():
            result[f'{name}-{run}'] = lambda work=work: timed(work)
    return result


def composed(setting: Setting, done: dict, chunks: int, runs: int) -> list[Row]:
    """Rows of rollouts, of the timings of each run."""
    rows = []
    for run in range(runs):
        encode, first, two = (done[f'{name}-{run}'] for name in ('encode', 'decode-1', 'decode-2'))
        later = setting.new_frames // setting.vae['scale_factor_temporal']
        decode = first + later * (two - first)
        for name in MEMORIES:
            for chunk, lap in enumerate(done[f'{name}-{run}'][:chunks]):
                seconds = lap['seconds']
                rows.append(
                    Row(
                        memory=name,
                        run=run,
                        chunk=chunk + 1,
                        frames=setting.new_frames,
                        read=seconds['read'] + lap['encoded_to_read'] * encode,
                        masks=seconds['masks'],
                        write=seconds['write'],
                        rest=decode + encode,
                        nbytes=lap['nbytes'],
                        index_nbytes=lap['index_nbytes'],
                        cells=lap['cells'],
                    )
                )
    return rows
