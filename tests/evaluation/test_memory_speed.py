"""The memory's benchmark runs on memories so small that its goals mean nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mirage_model.camera import concatenate
from mirage_model.cli import main
from mirage_model.evaluation.benchmarks.goals import Metric, report
from mirage_model.evaluation.benchmarks.memory_speed import (
    HEIGHT,
    WIDTH,
    camera,
    chunk_ahead,
    fill,
    in_view,
    room_depth,
    sort_and_assign,
)


@pytest.mark.slow
def test_benchmark_prints_and_writes_its_metrics(tmp_path, capsys):
    path = tmp_path / 'bench' / 'memory.json'
    code = main(['bench', 'memory', '--scale', '0.001', '--repeats', '1', '--out', str(path)])
    content, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert code == (0 if content['holds'] else 1)
    assert content['holds'] == all(figure['holds'] for figure in content['metrics'])
    assert content['scale'] == 0.001 and len(content['metrics']) == 18
    for figure in content['metrics']:
        if figure['goal'] is not None:
            held = figure['value'] >= figure['goal']
            assert figure['holds'] == (held if figure['bound'] == 'at least' else not held)
        assert min(figure['seconds']) > 0 and figure['name'] in printed


def test_a_room_has_a_wall_wherever_a_camera_looks():
    """The cameras are so far from the origin that float32 loses most directions across."""
    far = camera(np.array([6.0 * 2**22 + 2, 1.5, 3.0]), 0.0, 0.0)
    depth = room_depth(concatenate([far, chunk_ahead(1)]))
    assert depth.isfinite().all() and (depth > 0).all()


def test_the_plain_version_covers_the_same_cells_as_the_memory():
    cameras = chunk_ahead(2)
    depth = room_depth(cameras)
    filled = fill(
        'test', [(cameras, depth)], 1, lambda *view: in_view(view[0], cameras, view[1])[0]
    )
    _, plain = sort_and_assign(filled.positions, torch.ones(len(filled.positions), 1), cameras)
    visible = filled.memory.readout(cameras).visible
    assert visible.shape == (2, HEIGHT, WIDTH)
    assert (plain == visible).float().mean() > 0.99  # .5 rounds to even there, and up here


def test_missed_goals_are_reported(tmp_path, capsys):
    figures = [
        Metric(name='kept', value=2.0, goal=2.0),
        Metric(name='told', value=9.0, goal=None),
        Metric(name='short', value=1.0, bound='at least', goal=1.5, seconds=(0.1, 0.2)),
    ]
    out = tmp_path / 'deep' / 'figures.json'
    assert report(figures[:2], out, {}) == 0 and json.loads(out.read_text())['holds']
    assert report(figures, out, {'about': 'them'}) == 1
    content = json.loads(out.read_text())
    assert content['about'] == 'them' and not content['holds']
    assert [figure['holds'] for figure in content['metrics']] == [True, True, False]
    assert 'MISSED  short  (100.00 ms against 200.00 ms)' in capsys.readouterr().out
