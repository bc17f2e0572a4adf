"""Compare two replays, every frame, mask and metric: ``mirage report compare DIR DIR``."""

from __future__ import annotations

from pathlib import Path
import sys

import numpy as np

from mirage_model.evaluation.config import CompareConfig
from mirage_model.evaluation.replay.replay import load


def differences(one: Path, other: Path) -> list[str]:
    """Return the differences between two folders of results, one line each."""
    names = [
        sorted(p.name for p in (out / 'segments').glob('*.safetensors')) for out in (one, other)
    ]
    found = [f'{name} is in one of them alone' for name in sorted(set(names[0]) ^ set(names[1]))]
    for name in sorted(set(names[0]) & set(names[1])):
        a, b = load(one / 'segments' / name), load(other / 'segments' / name)
        for field in ('frames', 'visibility', 'recorded', 'warp', 'nanoseconds'):
            if not np.array_equal(getattr(a, field), getattr(b, field)):
                found.append(f'{name}: {field}')
        for row, same in zip(a.rows, b.rows):
            for key, value in row.items():
                if not np.array_equal(value, same[key], equal_nan=True):
                    found.append(f'{name}, frame {row["frame"]}: {key} {value} and {same[key]}')
    if not names[0] and not names[1]:
        found.append(f'neither {one} nor {other} holds results')
    return found


def main(config: CompareConfig) -> int:
    """Compare two folders of results; return 1 where they differ."""
    one, other = config.folders
    found = differences(one, other)
    for line in found:
        print(f'differs: {line}', file=sys.stderr)
    if not found:
        count = len(list((one / 'segments').glob('*.safetensors')))
        print(f'equal: {count} segments of {one} and {other}')
    return 1 if found else 0
