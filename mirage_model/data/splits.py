"""Splits of scenes into training, validation and test."""

from __future__ import annotations

import json
from pathlib import Path

SPLITS = Path(__file__).parents[1] / 'worlds' / 'splits.json'
NAMES = ('train', 'validation', 'test')


def read_splits(path: Path = SPLITS) -> dict[str, dict[str, list[str]]]:
    """Return scenes by world and split. A scene is a map, a house, a video or a place.

    Raises:
        ValueError: If the file is not a JSON object of this form, or a scene is in it twice, in
            any case of letters.
    """
    try:
        splits = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: cannot be read: {error}') from None
    location_of: dict[str, str] = {}
    for world, parts in splits.items() if isinstance(splits, dict) else [('', None)]:
        if not isinstance(parts, dict) or not set(parts) <= set(NAMES):
            raise ValueError(f'{path}: {world!r} must name scenes under some of {NAMES}')
        for split, scenes in parts.items():
            if not isinstance(scenes, list) or not all(isinstance(s, str) for s in scenes):
                raise ValueError(f'{path}: {world}.{split} must be a list of names')
            for scene in scenes:
                location, name = f'{world}.{split}', scene.casefold()
                if name in location_of:
                    raise ValueError(
                        f'{path}: {scene!r} is in {location_of[name]} and in {location}'
                    )
                location_of[name] = location
    return splits


def maps_of(split: str, world: str = 'doom') -> list[str]:
    """Return the scenes of a simulated world in a split.

    Raises:
        ValueError: If the world or the split is unknown.
    """
    worlds = read_splits()
    if world not in worlds:
        raise ValueError(f'world: {world!r} is unknown, must be one of {sorted(worlds)}')
    if split not in worlds[world]:
        raise ValueError(f'split: {split!r} is unknown, must be one of {sorted(worlds[world])}')
    return worlds[world][split]


def split_of(scene: str, splits: dict[str, dict[str, list[str]]]) -> str:
    """Return the split of a scene, ignoring case; unlisted scenes are for training."""
    for parts in splits.values():
        for split, scenes in parts.items():
            if scene.casefold() in (name.casefold() for name in scenes):
                return split
    return 'train'
