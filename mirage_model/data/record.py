"""Recording of simulated trajectories as clips.

Clip i of a split is always the same: its scene, trajectory and dynamic objects depend on i alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
import multiprocessing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mirage_model.clip import Clip, reason_to_reject, save_clip
from mirage_model.data.config import RecordCommand, RecordConfig
from mirage_model.data.splits import maps_of, read_splits, split_of
from mirage_model.io import begin_run, write_json
from mirage_model.worlds import doom
from mirage_model.worlds.doom import DoomWorld
from mirage_model.worlds.photographs import find_photographs
from mirage_model.worlds.rooms import NAME, RoomWorld

KINDS = ('wander', 'forward', 'turn', 'wander', 'out_and_back')


def open_world(
    scene: str, *, seed: int, config: RecordConfig = RecordConfig()
) -> DoomWorld | RoomWorld:
    """Return the world of a map or scene.

    Raises:
        ValueError: The name is unknown, or the world does not have the size, rate or photographs.
    """
    if NAME.fullmatch(scene):
        folder = config.photographs
        return RoomWorld(
            scene,
            seed=seed,
            height=config.height,
            width=config.width,
            rate=config.rate,
            photographs=find_photographs(folder, split_of(scene, read_splits())) if folder else (),
        )
    if config.photographs:
        raise ValueError(f'{scene}: photographs cover houses alone, leave them out for Doom')
    wanted = (config.height, config.width, config.rate)
    if wanted != (doom.HEIGHT, doom.WIDTH, doom.FRAME_RATE):
        raise ValueError(
            f'{scene}: {config.height}x{config.width} at {config.rate:g} Hz, Doom is recorded at '
            f'{doom.HEIGHT}x{doom.WIDTH} and {doom.FRAME_RATE:g} Hz'
        )
    return DoomWorld(scene, seed=seed)


def record_trajectory(
    map_name: str,
    kind: str,
    *,
    frames: int,
    seed: int,
    name: str,
    config: RecordConfig = RecordConfig(),
    progress: Callable[[int], None] = lambda done: None,
) -> Clip:
    """Return a clip of one trajectory through a map, the same for the same arguments."""
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
    clip = record_trajectory(
        map_name, kind, frames=config.frames, seed=index, name=name, config=config
    )
    reason = reason_to_reject(clip)
    if reason is None:
        save_clip(path, clip)
    return reason and f'{name}: {reason}'


def main(config: RecordCommand) -> int:
    """Record the clips that are missing, and count those that are left out."""
    begin_run(config.out / 'config.json', asdict(config.record))
    out = config.out / config.split
    out.mkdir(exist_ok=True)
    left_out = []
    # the game library keeps global state: each worker is a fresh process
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(config.workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(_record_one, config.world, config.split, index, config.record, out)
            for index in range(config.clips)
        ]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit='clip'):
            if (reason := job.result()) is not None:
                left_out.append(reason)
    write_json(out / f'left_out-{config.world}.json', sorted(left_out))
    print(f'{len(list(out.glob("*.safetensors")))} clips in {out}, {len(left_out)} left out')
    return 0
