from __future__ import annotations

import csv
from pathlib import Path
import time

import cv2
import pytest
from torch.utils.tensorboard import SummaryWriter

from mirage_model.cli import main
from mirage_model.training import curves


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    """Return a run that was stopped at step 4 and resumed at 3, and one that was not stopped."""
    for name in ('resumed', 'whole'):
        for steps, purge in (((1, 2, 3, 4), None), ((3, 4, 5), 3)):
            if purge and name == 'whole':
                continue
            time.sleep(1.1 if purge else 0)  # files are read in the order of their seconds
            with SummaryWriter(str(tmp_path / name / 'logs'), purge_step=purge) as writer:
                for step in steps:
                    writer.add_scalar('train/loss', step + (0.5 if purge else 0.0), step)
    return tmp_path / 'resumed', tmp_path / 'whole'


def test_repeated_steps_of_a_resumed_run_count_once(runs):
    assert curves.read(runs[0]) == {
        'train/loss': [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)]
    }


def test_a_run_without_logs_is_named(tmp_path):
    (tmp_path / 'logs').mkdir()
    with pytest.raises(ValueError, match='nothing is logged yet'):
        curves.read(tmp_path)
    (tmp_path / 'logs').rmdir()
    with pytest.raises(ValueError, match='give the run folder of a training'):
        curves.read(tmp_path)


def plot(*words: object) -> int:
    return main(['train', 'curves', *map(str, words)])


def test_the_command_writes_a_table_and_an_image(runs, tmp_path, capsys):
    assert plot(*runs, '--out', tmp_path / 'both') == 0
    with (tmp_path / 'both.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['run'] for row in rows] == 5 * ['resumed'] + 4 * ['whole']
    assert rows[2] == {'run': 'resumed', 'scalar': 'train/loss', 'step': '3', 'value': '3.5'}
    assert cv2.imread(str(tmp_path / 'both.png')).std() > 1
    assert plot(*runs, '--out', tmp_path / 'both', '--panel', 'train/los') == 1
    assert 'train/los is not logged, there are train/loss' in capsys.readouterr().err
    assert plot(tmp_path, '--out', tmp_path / 'both') == 1
    assert 'give the run folder of a training' in capsys.readouterr().err


def test_a_table_replaces_the_runs_in_it(runs, tmp_path, capsys):
    resumed, whole = runs
    assert plot(resumed, '--out', tmp_path / 'one') == 0
    assert plot(tmp_path / 'one.csv', whole, '--out', tmp_path / 'table') == 0
    assert plot(*runs, '--out', tmp_path / 'runs') == 0
    assert (tmp_path / 'table.csv').read_text() == (tmp_path / 'runs.csv').read_text()
    (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
    assert plot(tmp_path / 'other.csv', '--out', tmp_path / 'none') == 1
    assert 'other.csv: not a table of curves' in capsys.readouterr().err
    (tmp_path / 'empty.csv').write_text('run,scalar,step,value\n')
    assert plot(tmp_path / 'empty.csv', '--out', tmp_path / 'none') == 1
    assert 'has no runs' in capsys.readouterr().err
    assert plot(tmp_path / 'table.csv', resumed, '--out', tmp_path / 'none') == 1
    assert 'run resumed is given twice' in capsys.readouterr().err
