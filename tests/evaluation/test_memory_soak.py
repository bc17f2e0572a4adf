"""The soak runs as short as a test may; its times are not asserted."""

from __future__ import annotations

from dataclasses import replace
import json

import pytest

from mirage_model.cli import main
from mirage_model.evaluation.benchmarks.memory_soak import Step, judge


@pytest.mark.slow
def test_short_soak_stays_under_the_capacity(tmp_path, capsys):
    out = tmp_path / 'bench' / 'soak.json'
    code = main(
        [
            'bench',
            'soak',
            '--steps',
            '60',
            '--stride',
            '8',
            '--channels',
            '4',
            '--capacity',
            '400',
            '--out',
            str(out),
        ]
    )
    report, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert code == (0 if report['holds'] else 1)
    assert report['steps'] == 60 and report['grid'] == [12, 20]
    held = {figure['name']: figure for figure in report['metrics']}
    assert held['points / the cap']['holds']
    assert held['share of the steps until the cap is near']['value'] < 1
    assert held['largest resident size / that after the first quarter']['holds']
    assert all(figure['name'] in printed for figure in report['metrics'])
    assert report['holds'] == all(figure['holds'] for figure in report['metrics'])


STEADY = [
    Step(read_seconds=0.01, write_seconds=0.1, rss=1000, points=95, nbytes=100, index_nbytes=10)
] * 40


@pytest.mark.parametrize(
    ('change', 'missed'),
    [
        ({}, set()),
        ({'points': 101}, {'points / the cap'}),
        ({'rss': 1051}, {'largest resident size / that after the first quarter'}),
        ({'rss': 951}, {'resident size after the first quarter / the smallest since'}),
        ({'index_nbytes': 16}, {'largest index / that after the first quarter'}),
        ({'read_seconds': 0.0121}, {'median read of the last quarter / of the second'}),
    ],
)
def test_drift_misses_a_goal(change, missed):
    steps = STEADY[:-10] + [replace(step, **change) for step in STEADY[-10:]]
    assert {figure.name for figure in judge(steps, 100) if not figure.holds} == missed


def test_unreached_capacity_misses_a_goal():
    empty = [replace(step, points=10) for step in STEADY]
    assert [figure.name for figure in judge(empty, 100) if not figure.holds] == [
        'share of the steps until the cap is near'
    ]
