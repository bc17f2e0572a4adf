"""Record clips of simulated drives: ``python -m mirage_model.data.record --world doom --split train --out DIR``.

Clip i of a split is always the same: its map, drive and movers follow from i alone. Clips that exist are
skipped, so an interrupted recording goes on where it stopped. Both worlds may be recorded into one folder,
which holds clips of one length, rate and size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
import multiprocessing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mirage_model.clip import Clip, save_clip, why_left_out
from mirage_model.data.splits import NAMES, maps_of
from mirage_model.io import begin_run, write_json
from mirage_model.worlds import doom
from mirage_model.worlds.doom import DoomWorld
from mirage_model.worlds.rooms import NAME, RoomWorld

KINDS = ('wander', 'forward', 'turn', 'wander', 'out_and_back')


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Frames of a clip, their size, and how many there are a second."""

    frames: int = 65
    height: int = doom.HEIGHT
    width: int = doom.WIDTH
    rate: float = doom.FRAME_RATE


def open_world(
    scene: str, *, seed: int, config: RecordConfig = RecordConfig()
) -> DoomWorld | RoomWorld:
    """The world of a map or scene. Raises ValueError for a name, or a size, that it does not have."""
    if NAME.fullmatch(scene):
        return RoomWorld(
            scene, seed=seed, height=config.height, width=config.width, rate=config.rate
        )
    wanted = (config.height, config.width, config.rate)
    if wanted != (doom.HEIGHT, doom.WIDTH, doom.FRAME_RATE):
        raise ValueError(
            f'Doom is recorded at {doom.HEIGHT}x{doom.WIDTH} and {doom.FRAME_RATE:g} Hz, '
            f'not at {config.height}x{config.width} and {config.rate:g} Hz'
        )
    return DoomWorld(scene, seed=seed)


def record_drive(
    map_name: str,
    kind: str,
    *,
    frames: int,
    seed: int,
    name: str,
    config: RecordConfig = RecordConfig(),
    progress: Callable[[int], None] = lambda done: None,
) -> Clip:
    """A clip of one drive through a map, the same for the same arguments."""
    with open_world(map_name, seed=seed, config=config) as world:
        world_from_camera = world.plan(kind, frames, np.random.default_rng(seed))
        times = np.arange(frames) / config.rate
        clip = world.record(world_from_camera, times, name=name, progress=progress)
    return replace(clip, scene=map_name)


def _record_one(world: str, split: str, index: int, config: RecordConfig, out: Path) -> str | None:
    maps = maps_of(split, world)
    map_name, kind = maps[index % len(maps)], KINDS[index % len(KINDS)]
    name = f'{index:05d}-{map_name}-{kind}'
    path = out / f'{name}.safetensors'
    if path.exists():
        return None
    clip = record_drive(map_name, kind, frames=config.frames, seed=index, name=name, config=config)
    reason = why_left_out(clip)
    if reason is None:
        save_clip(path, clip)
    return reason and f'{name}: {reason}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--world', choices=('doom', 'rooms'), default='doom')
    parser.add_argument('--split', required=True, choices=NAMES)
    parser.add_argument('--out', required=True, type=Path)
    parser.add_argument('--clips', type=int, default=800)
    parser.add_argument('--frames', type=int, default=RecordConfig.frames)
    parser.add_argument('--height', type=int, default=RecordConfig.height, help='rooms only')
    parser.add_argument('--width', type=int, default=RecordConfig.width, help='rooms only')
    parser.add_argument('--rate', type=float, default=RecordConfig.rate, help='Hz, rooms only')
    parser.add_argument('--workers', type=int, default=2)
    arguments = parser.parse_args()
    config = RecordConfig(
        frames=arguments.frames,
        height=arguments.height,
        width=arguments.width,
        rate=arguments.rate,
    )
    try:
        begin_run(arguments.out / 'config.json', asdict(config))
    except ValueError as error:
        parser.error(str(error))
    out = arguments.out / arguments.split
    out.mkdir(exist_ok=True)
    left_out = []
    # the game library keeps global state: every worker is a fresh process
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(arguments.workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(_record_one, arguments.world, arguments.split, index, config, out)
            for index in range(arguments.clips)
        ]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit='clip'):
            if job.result() is not None:
                left_out.append(job.result())
    write_json(out / f'left_out-{arguments.world}.json', sorted(left_out))
    print(f'{len(list(out.glob("*.safetensors")))} clips in {out}, {len(left_out)} left out')


if __name__ == '__main__':
    main()
