"""Record clips of simulated drives: ``python -m mirage_model.data.record --split train --out DIR``.

Clip i of a split is always the same: its map, drive and sprites follow from i alone. Clips that exist are
skipped, so an interrupted recording goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
import json
import multiprocessing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mirage_model.data.clip import Clip, save_clip
from mirage_model.worlds.doom import FRAME_RATE, DoomWorld

SPLITS = Path(__file__).parents[1] / 'worlds' / 'splits.json'
KINDS = ('wander', 'forward', 'turn', 'wander', 'out_and_back')


def maps_of(split: str) -> list[str]:
    """Names of a split's maps. Raises ValueError for an unknown split."""
    splits = json.loads(SPLITS.read_text())['doom']
    if split not in splits:
        raise ValueError(f'no split {split!r}, there are {sorted(splits)}')
    return splits[split]


def record_drive(
    map_name: str,
    kind: str,
    *,
    frames: int,
    seed: int,
    name: str,
    progress: Callable[[int], None] = lambda done: None,
) -> Clip:
    """A clip of one drive through a map, the same for the same arguments."""
    with DoomWorld(map_name, seed=seed) as world:
        world_from_camera = world.plan(kind, frames, np.random.default_rng(seed))
        times = np.arange(frames) / FRAME_RATE
        return world.record(world_from_camera, times, name=name, progress=progress)


def why_left_out(clip: Clip) -> str | None:
    """A reason not to learn from a clip, or None."""
    known = ~clip.depth.isnan()
    if known.float().mean() < 0.4:
        return 'under 40% of the pixels have an exact depth'
    if clip.depth[known].median() < 1.0:
        return 'it looks at a wall from less than a metre'
    return None


def _record_one(split: str, index: int, frames: int, out: Path) -> str | None:
    maps = maps_of(split)
    map_name, kind = maps[index % len(maps)], KINDS[index % len(KINDS)]
    name = f'{index:05d}-{map_name}-{kind}'
    path = out / f'{name}.safetensors'
    if path.exists():
        return None
    clip = record_drive(map_name, kind, frames=frames, seed=index, name=name)
    reason = why_left_out(clip)
    if reason is None:
        save_clip(path, clip)
    return reason and f'{name}: {reason}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--split', required=True, choices=('train', 'validation', 'test'))
    parser.add_argument('--out', required=True, type=Path)
    parser.add_argument('--clips', type=int, default=800)
    parser.add_argument('--frames', type=int, default=65)
    parser.add_argument('--workers', type=int, default=2)
    arguments = parser.parse_args()
    out = arguments.out / arguments.split
    out.mkdir(parents=True, exist_ok=True)
    left_out = []
    # the game library keeps global state: every worker is a fresh process
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(arguments.workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(_record_one, arguments.split, index, arguments.frames, out)
            for index in range(arguments.clips)
        ]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit='clip'):
            if job.result() is not None:
                left_out.append(job.result())
    (out / 'left_out.json').write_text(json.dumps(sorted(left_out), indent=1))
    print(f'{len(list(out.glob("*.safetensors")))} clips in {out}, {len(left_out)} left out')


if __name__ == '__main__':
    main()
