"""Metrics, and the level of their report."""

from __future__ import annotations

import pytest

from mirage_model.interface import MemoryStats
from mirage_ros.declaration import from_values
from mirage_ros.diagnostics import NodeMetrics, diagnostics
from mirage_ros.parameters import NodeParameters


def report(metrics: NodeMetrics, *, waiting: int = 0, points: int = 10, **parameters):
    (status,) = diagnostics(
        metrics,
        from_values(
            NodeParameters, {f'diagnostics.{name}': value for name, value in parameters.items()}
        ),
        name='/mirage',
        state='active',
        engine=None,
        waiting=waiting,
        stats=MemoryStats(points=points, nbytes=1000),
        device_bytes=5,
    ).status
    return status, {value.key: value.value for value in status.values}


def test_medians_percentiles_rates_and_counts():
    metrics = NodeMetrics()
    for i in range(1, 101):
        metrics.add_chunk(16, i / 100, {'denoise': i / 200})
    metrics.count('images dropped: rate')
    metrics.count('images dropped: rate')
    status, values = report(metrics)
    assert (values['chunk median s'], values['chunk p95 s']) == ('0.5050', '0.9505')
    assert values['chunk denoise median s'] == '0.2525'
    assert values['frames per second'] == f'{1600 / 50.5:.2f}'
    assert values['images dropped: rate'] == '2'
    assert (values['memory points'], values['memory bytes']) == ('10', '1000')
    assert status.level == b'\0' and status.message == 'active'


@pytest.mark.parametrize(
    ('changes', 'level', 'why'),
    [
        ({'warn_chunk_seconds': 1.0}, b'\1', 'a chunk takes 2.0 s'),
        ({'error_chunk_seconds': 1.5, 'warn_chunk_seconds': 1.0}, b'\2', 'a chunk takes 2.0 s'),
        ({'points': 11, 'warn_points': 10}, b'\1', 'the memory holds 11 points'),
        ({'error_bytes': 999}, b'\2', 'the memory takes 1000 bytes'),
        ({'waiting': 4}, b'\1', '4 requests are waiting'),
    ],
)
def test_levels(changes, level, why):
    metrics = NodeMetrics()
    metrics.add_chunk(16, 2.0, {})
    status, _ = report(metrics, **changes)
    assert (status.level, status.message) == (level, why)
