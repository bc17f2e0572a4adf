"""JSON of results, and whose they are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mirage_model.evaluation.benchmarks.goals import Figure, report
from mirage_model.io import as_json, claim, write_json


def test_what_is_not_known_is_null():
    content = {'a': [1.5, math.nan, {'b': (np.float64('nan'), 2)}], 'c': math.inf, 'd': -math.inf}
    expected = {'a': [1.5, None, {'b': [None, 2]}], 'c': 'inf', 'd': '-inf'}
    assert json.loads(as_json(content)) == expected


def test_figures_that_are_not_known_are_written_as_null(tmp_path, capsys):
    figure = Figure(name='of nothing', value=math.nan, goal=1.0)
    assert report([figure], tmp_path / 'figures.json', {}) == 1
    assert 'nan' in capsys.readouterr().out
    assert 'NaN' not in (tmp_path / 'figures.json').read_text()


def test_a_folder_is_held_to_what_its_results_are_of(tmp_path):
    about = {'model': 'a', 'horizon': math.inf, 'size': (2, 3)}
    assert claim(tmp_path, about) == claim(tmp_path, dict(about)) == tmp_path / 'segments'
    assert claim(tmp_path, about, '') == tmp_path
    for other in ({**about, 'model': 'b'}, {**about, 'more': 1}):
        with pytest.raises(ValueError, match='holds results that differ in mo'):
            claim(tmp_path, other)
    assert json.loads((tmp_path / 'config.json').read_text())['model'] == 'a'


def test_a_file_is_whole_or_absent(tmp_path):
    write_json(tmp_path / 'a.json', {'b': 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / 'a.json', {'b': object()})
    assert json.loads((tmp_path / 'a.json').read_text()) == {'b': 1}
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']
