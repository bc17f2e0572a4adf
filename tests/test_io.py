"""JSON is strict, files are whole or absent, and runs resume only unchanged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mirage_model.evaluation.benchmarks.goals import Metric, report
from mirage_model.io import as_json, begin_run, write_json, written_whole


def test_what_is_not_known_is_null():
    content = {'a': [1.5, math.nan, {'b': (np.float64('nan'), 2)}], 'c': math.inf, 'd': -math.inf}
    expected = {'a': [1.5, None, {'b': [None, 2]}], 'c': 'inf', 'd': '-inf'}
    assert json.loads(as_json(content)) == expected


def test_figures_that_are_not_known_are_written_as_null(tmp_path, capsys):
    metric = Metric(name='of nothing', value=math.nan, goal=1.0)
    assert report([metric], tmp_path / 'figures.json', {}) == 1
    assert 'nan' in capsys.readouterr().out
    assert 'NaN' not in (tmp_path / 'figures.json').read_text()


def test_a_run_resumes_only_with_its_description(tmp_path):
    path = tmp_path / 'run' / 'config.json'
    begun = {'model': 'a', 'horizon': math.inf, 'trainer': {'size': (2, 3), 'steps': 5}}
    begin_run(path, begun)
    begin_run(path, dict(begun))
    for other, name in (
        ({**begun, 'model': 'b'}, 'model'),
        ({**begun, 'more': 1}, 'more'),
        ({**begun, 'trainer': {'size': (2, 4), 'steps': 5}}, r'trainer\.size'),
    ):
        with pytest.raises(ValueError, match=f'began with another {name}, choose'):
            begin_run(path, other)
    assert json.loads(path.read_text())['model'] == 'a'
    longer = {**begun, 'trainer': {'size': (2, 3), 'steps': 9}}
    begin_run(path, longer, may_differ=('trainer.steps',))
    assert json.loads(path.read_text())['trainer']['steps'] == 9


def test_a_folder_is_whole_or_absent(tmp_path):
    path = tmp_path / 'checkpoint-1'
    with pytest.raises(KeyboardInterrupt), written_whole(path) as part:
        part.mkdir()
        raise KeyboardInterrupt
    assert not path.exists() and part.exists()
    for content in 'ab':
        with written_whole(path) as part:
            part.mkdir()
            (part / 'file').write_text(content)
    assert (path / 'file').read_text() == 'b' and not part.exists()


def test_a_file_is_whole_or_absent(tmp_path):
    write_json(tmp_path / 'a.json', {'b': 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / 'a.json', {'b': object()})
    assert json.loads((tmp_path / 'a.json').read_text()) == {'b': 1}
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']
