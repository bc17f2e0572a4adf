"""Curves of trainings as an image and as CSV, from the logs of their run folders."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import logging
import os
from pathlib import Path

from matplotlib.figure import Figure
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mirage_model.training.config import CurvesConfig

Curves = dict[str, list[tuple[int, float]]]
"""Steps and values of each logged scalar."""


def read(run: Path) -> Curves:
    """Return the logged scalars of a run folder; repeated steps of a resumed run count once.

    Raises:
        ValueError: The folder has no log of a training.
    """
    if not (run / 'logs').is_dir():
        raise ValueError(f'{run}: logs/ is missing, give the run folder of a training')
    logging.getLogger('tensorboard').setLevel(logging.ERROR)  # it warns of resumed runs
    events = EventAccumulator(str(run / 'logs'), size_guidance={'scalars': 0})
    events.Reload()
    curves = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()['scalars']
    }
    if not curves:
        raise ValueError(f'{run}: nothing is logged yet')
    return curves


def write_csv(path: Path, runs: dict[str, Curves]) -> None:
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['run', 'scalar', 'step', 'value'])
        for run, curves in runs.items():
            for name, points in curves.items():
                writer.writerows([run, name, step, f'{value:.5g}'] for step, value in points)


def read_csv(path: Path) -> dict[str, Curves]:
    """Return the runs in a file of `write_csv`.

    Raises:
        ValueError: The file is another one.
    """
    runs: dict[str, Curves] = {}
    try:
        with path.open(newline='') as file:
            for row in csv.DictReader(file):
                points = runs.setdefault(row['run'], {}).setdefault(row['scalar'], [])
                points.append((int(row['step']), float(row['value'])))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f'{path}: not a table of curves: {error!r}') from None
    if not runs:
        raise ValueError(f'{path}: not a table of curves: has no runs')
    return runs


def plot(path: Path, runs: dict[str, Curves], scalars: Sequence[Sequence[str]]) -> None:
    """Plot one panel for each list of scalars."""
    figure = Figure(figsize=(5.2 * len(scalars), 3.6), layout='constrained')
    panels = figure.subplots(1, len(scalars), squeeze=False)[0]
    lengths = [max(points[-1][0] for points in curves.values()) for curves in runs.values()]
    starts = np.cumsum([0, *lengths[:-1]])
    for panel, names in zip(panels, scalars):
        for colour, name in enumerate(names):
            label: str | None = name
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


def main(config: CurvesConfig) -> int:
    """Write the curves of runs as CSV and PNG."""
    folders = [path for path in config.runs if path.suffix != '.csv']
    parent = os.path.commonpath([run.parent for run in folders]) if folders else ''
    runs: dict[str, Curves] = {}
    for path in config.runs:
        added = {str(path.relative_to(parent)): read(path)} if path in folders else read_csv(path)
        if repeated := added.keys() & runs.keys():
            raise ValueError(f'{path}: run {min(repeated)} is given twice')
        runs |= added
    panels = config.panel or (('train/loss',),)
    logged = {name for curves in runs.values() for name in curves}
    for name in (name for names in panels for name in names):
        if name not in logged:
            raise ValueError(f'panel: {name} is not logged, there are {", ".join(sorted(logged))}')
    write_csv(config.out.with_suffix('.csv'), runs)
    plot(config.out.with_suffix('.png'), runs, panels)
    return 0
