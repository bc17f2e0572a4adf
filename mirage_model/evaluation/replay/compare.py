"""Are two replays equal? ``python -m mirage_model.evaluation same-figures DIR DIR``

Every figure of every frame is compared, as are the frames and masks themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import sys

import numpy as np

from mirage_model.evaluation.replay.replay import load


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two results of `command.run`, one line each."""
    names = [
        sorted(p.name for p in (out / 'segments').glob('*.safetensors')) for out in (one, other)
    ]
    found = [f'{name} is in one of them alone' for name in sorted(set(names[0]) ^ set(names[1]))]
    for name in sorted(set(names[0]) & set(names[1])):
        a, b = load(one / 'segments' / name), load(other / 'segments' / name)
        for field in ('frames', 'visibility', 'recorded', 'nanoseconds'):
            if not np.array_equal(getattr(a, field), getattr(b, field)):
                found.append(f'{name}: {field}')
        for row, same in zip(a.rows, b.rows):
            for key, value in row.items():
                if not np.array_equal(value, same[key], equal_nan=True):
                    found.append(f'{name}, frame {row["frame"]}: {key} {value} and {same[key]}')
    if not names[0] and not names[1]:
        found.append(f'neither {one} nor {other} holds results')
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='same-figures', description=__doc__.splitlines()[0])
    parser.add_argument('one', type=Path)
    parser.add_argument('other', type=Path)
    given = parser.parse_args(arguments)
    found = differences(given.one, given.other)
    for line in found:
        print(f'differs: {line}', file=sys.stderr)
    if not found:
        count = len(list((given.one / 'segments').glob('*.safetensors')))
        print(f'the figures of {given.one} and {given.other} are equal: {count} segments')
    return 1 if found else 0
