"""The curves of trainings as a picture and as CSV, from the logs of their run folders.

Runs that go on from one another are given in their order and drawn behind one another. A CSV that this command
wrote stands for the runs in it.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
from pathlib import Path

from matplotlib.figure import Figure
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curves = dict[str, list[tuple[int, float]]]
"""Steps and values of every logged scalar."""

WINDOW = 25
"""A perception run logs every step: so many are averaged to a point."""


def read(run: Path) -> Curves:
    """What a run folder logged. What a resumed run did again counts once.

    Raises ``ValueError`` for a folder that holds no log of a training.
    """
    if (run / 'logs').is_dir():
        logging.getLogger('tensorboard').setLevel(logging.ERROR)  # it warns of resumed runs
        events = EventAccumulator(str(run / 'logs'), size_guidance={'scalars': 0})
        events.Reload()
        curves = {
            name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()['scalars']
        }
        if not curves:
            raise ValueError(f'{run} has logged nothing yet')
        return curves
    if not (run / 'log.jsonl').is_file():
        raise ValueError(f'{run} has neither logs/ nor log.jsonl: give the folder of a training')
    steps: dict[int, dict[str, float]] = {}
    for line in (run / 'log.jsonl').read_text().splitlines():
        entry = json.loads(line)
        steps[entry.pop('step')] = entry
    if not steps:
        raise ValueError(f'{run} has logged nothing yet')
    kept = sorted(steps)
    curves: Curves = {}
    for name in steps[kept[0]]:
        values = [steps[step][name] for step in kept]
        curves[f'train/{name}'] = [
            (kept[min(at + WINDOW, len(kept)) - 1], float(np.mean(values[at : at + WINDOW])))
            for at in range(0, len(kept), WINDOW)
        ]
    return curves


def write_csv(path: Path, runs: dict[str, Curves]) -> None:
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['run', 'scalar', 'step', 'value'])
        for run, curves in runs.items():
            for name, points in curves.items():
                writer.writerows([run, name, step, f'{value:.5g}'] for step, value in points)


def read_csv(path: Path) -> dict[str, Curves]:
    """The runs that `write_csv` wrote. Raises ``ValueError`` for another file."""
    runs: dict[str, Curves] = {}
    try:
        with path.open(newline='') as file:
            for row in csv.DictReader(file):
                points = runs.setdefault(row['run'], {}).setdefault(row['scalar'], [])
                points.append((int(row['step']), float(row['value'])))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f'{path} is no table of curves: {error!r}') from None
    if not runs:
        raise ValueError(f'{path} is no table of curves: it holds no run')
    return runs


def plot(path: Path, runs: dict[str, Curves], scalars: list[list[str]]) -> None:
    """One panel for every list of scalars."""
    figure = Figure(figsize=(5.2 * len(scalars), 3.6), layout='constrained')
    panels = figure.subplots(1, len(scalars), squeeze=False)[0]
    lengths = [max(points[-1][0] for points in curves.values()) for curves in runs.values()]
    starts = np.cumsum([0, *lengths[:-1]])
    for panel, names in zip(panels, scalars):
        for colour, name in enumerate(names):
            label = name
            for start, curves in zip(starts, runs.values()):
                if points := curves.get(name):
                    steps, values = np.array(points).T
                    marker = 'o' if len(points) < 10 else None
                    panel.plot(start + steps, values, f'C{colour}', marker=marker, label=label)
                    label = None
        for start, run in zip(starts, runs):
            panel.axvline(start, color='0.8', linewidth=0.8, zorder=0)
            panel.text(
                start,
                1.0,
                f' {run}',
                transform=panel.get_xaxis_transform(),
                fontsize=7,
                va='bottom',
            )
        panel.set_xlabel('step')
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', type=Path, nargs='+', help='run folders or CSV, in their order')
    parser.add_argument('--out', type=Path, required=True, help='written with .csv and .png')
    parser.add_argument(
        '--panel',
        nargs='+',
        action='append',
        metavar='SCALAR',
        help='what one panel shows; may be repeated; default: the loss',
    )
    arguments = parser.parse_args()
    try:
        folders = [path for path in arguments.runs if path.suffix != '.csv']
        parent = os.path.commonpath([run.parent for run in folders]) if folders else ''
        runs: dict[str, Curves] = {}
        for path in arguments.runs:
            if path in folders:
                found = {str(path.relative_to(parent)): read(path)}
            else:
                found = read_csv(path)
            if twice := found.keys() & runs.keys():
                raise ValueError(f'{path}: there is a run {min(twice)} already')
            runs |= found
    except ValueError as error:
        parser.error(str(error))
    scalars = arguments.panel or [['train/loss']]
    known = {name for curves in runs.values() for name in curves}
    for name in (name for names in scalars for name in names):
        if name not in known:
            parser.error(f'no run has logged {name}; there are: {", ".join(sorted(known))}')
    write_csv(arguments.out.with_suffix('.csv'), runs)
    plot(arguments.out.with_suffix('.png'), runs, scalars)


if __name__ == '__main__':
    main()
