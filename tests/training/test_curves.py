from __future__ import annotations

import csv
import json
import sys
import time

import cv2
import pytest
from torch.utils.tensorboard import SummaryWriter

from mirage_model.training import curves


@pytest.fixture
def runs(tmp_path):
    """One that was stopped at step 4 and resumed at 3, and one of perception."""
    resumed = tmp_path / 'resumed'
    for steps, purge in (((1, 2, 3, 4), None), ((3, 4, 5), 3)):
        time.sleep(1.1 if purge else 0)  # files are read in the order of their seconds
        with SummaryWriter(str(resumed / 'logs'), purge_step=purge) as writer:
            for step in steps:
                writer.add_scalar('train/loss', step + (0.5 if purge else 0.0), step)
    perception = tmp_path / 'perception'
    perception.mkdir()
    steps = [*range(1, 31), *range(26, 52)]
    lines = [json.dumps({'step': step, 'loss': float(step)}) for step in steps]
    (perception / 'log.jsonl').write_text('\n'.join(lines) + '\n')
    return resumed, perception


def test_what_a_resumed_run_did_again_counts_once(runs):
    resumed, perception = map(curves.read, runs)
    assert resumed == {'train/loss': [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)]}
    assert perception == {'train/loss': [(25, 13.0), (50, 38.0), (51, 51.0)]}


def test_a_run_that_has_logged_nothing_is_named(tmp_path):
    (tmp_path / 'logs').mkdir()
    with pytest.raises(ValueError, match='has logged nothing yet'):
        curves.read(tmp_path)
    (tmp_path / 'logs').rmdir()
    (tmp_path / 'log.jsonl').touch()
    with pytest.raises(ValueError, match='has logged nothing yet'):
        curves.read(tmp_path)


def command(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, 'argv', ['curves', *map(str, words)])
    curves.main()


def test_the_command_writes_a_table_and_a_picture(runs, tmp_path, monkeypatch, capsys):
    command(monkeypatch, *runs, '--out', tmp_path / 'both')
    with (tmp_path / 'both.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['run'] for row in rows] == 5 * ['resumed'] + 3 * ['perception']
    assert rows[2] == {'run': 'resumed', 'scalar': 'train/loss', 'step': '3', 'value': '3.5'}
    assert cv2.imread(str(tmp_path / 'both.png')).std() > 1
    with pytest.raises(SystemExit):
        command(monkeypatch, *runs, '--out', tmp_path / 'both', '--panel', 'train/los')
    assert 'no run has logged train/los; there are: train/loss' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path, '--out', tmp_path / 'both')
    assert 'give the folder of a training' in capsys.readouterr().err


def test_a_table_stands_for_the_runs_in_it(runs, tmp_path, monkeypatch, capsys):
    resumed, perception = runs
    command(monkeypatch, resumed, '--out', tmp_path / 'one')
    command(monkeypatch, tmp_path / 'one.csv', perception, '--out', tmp_path / 'table')
    command(monkeypatch, *runs, '--out', tmp_path / 'runs')
    assert (tmp_path / 'table.csv').read_text() == (tmp_path / 'runs.csv').read_text()
    (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path / 'other.csv', '--out', tmp_path / 'none')
    assert 'other.csv is no table of curves' in capsys.readouterr().err
    (tmp_path / 'empty.csv').write_text('run,scalar,step,value\n')
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path / 'empty.csv', '--out', tmp_path / 'none')
    assert 'it holds no run' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path / 'table.csv', resumed, '--out', tmp_path / 'none')
    assert 'there is a run resumed already' in capsys.readouterr().err
