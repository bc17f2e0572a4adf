"""The memory's benchmark, on memories so small that its goals mean nothing."""

from __future__ import annotations

import json

import torch

from mirage_model.evaluation.bench_memory import (
    HEIGHT,
    WIDTH,
    chunk_ahead,
    fill,
    in_view,
    main,
    room_depth,
    sort_and_assign,
)


def test_the_report_says_what_was_measured_and_whether_it_holds(tmp_path, capsys):
    path = tmp_path / 'bench' / 'memory.json'
    code = main(['--scale', '0.001', '--repeats', '1', '--out', str(path)])
    report, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert code == (0 if report['holds'] else 1)
    assert report['holds'] == all(figure['holds'] for figure in report['figures'])
    assert report['scale'] == 0.001 and len(report['figures']) == 10
    for figure in report['figures']:
        held = figure['value'] >= figure['goal']
        assert figure['holds'] == (held if figure['bound'] == 'at least' else not held)
        assert figure['seconds'] > 0 and figure['name'] in printed


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
