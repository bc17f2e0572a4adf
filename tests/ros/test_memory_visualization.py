"""The memory's cloud and grid equal loops over its cells."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from mirage_model.interface import Points
from mirage_ros.memory_visualization import (
    IMAGINED_ONLY,
    OBSERVED,
    UNKNOWN,
    cloud_message,
    grid_message,
)
from mirage_ros.tools.viewer import log_points

HEADER = Header(frame_id='map')


def test_cloud():
    points = Points(
        positions=np.array([[1.5, -2.0, 0.25], [3.0, 4.0, 5.0]], np.float32),
        colours=np.array([[255, 128, 1], [2, 3, 4]], np.uint8),
        observed=np.array([True, False]),
    )
    message = cloud_message(points, HEADER)
    message = deserialize_message(serialize_message(message), PointCloud2)
    assert [field.name for field in message.fields] == ['x', 'y', 'z', 'rgb', 'observed']
    assert len(message.data) == message.row_step == 2 * message.point_step
    kinds = {7: 'f4', 6: 'u4', 2: 'u1'}
    for i in range(2):
        row = bytes(message.data)[i * message.point_step : (i + 1) * message.point_step]
        values = {
            f.name: np.frombuffer(row, kinds[f.datatype], count=1, offset=f.offset)[0]
            for f in message.fields
        }
        assert [values[axis] for axis in 'xyz'] == points.positions[i].tolist()
        red, green, blue = points.colours[i].tolist()
        assert values['rgb'] == red * 65536 + green * 256 + blue
        assert values['observed'] == (255 if points.observed[i] else 128)


def test_grid_equals_a_loop_over_all_points():
    rng = np.random.default_rng(0)
    positions = rng.uniform(-3, 5, (300, 3)).astype(np.float32)
    observed = rng.random(300) < 0.5
    message = grid_message(positions, observed, HEADER, resolution=0.5, max_size=1000)
    expected: dict[tuple[int, int], int] = {}
    for (x, y, _), is_observed in zip(positions.tolist(), observed):
        square = math.floor(x / 0.5), math.floor(y / 0.5)
        value = OBSERVED if is_observed else IMAGINED_ONLY
        expected[square] = max(value, expected.get(square, UNKNOWN))
    grid = np.array(message.data).reshape(message.info.height, message.info.width)
    left, bottom = message.info.origin.position.x / 0.5, message.info.origin.position.y / 0.5
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            square = round(left) + column, round(bottom) + row
            assert grid[row, column] == expected.get(square, UNKNOWN)


def test_empty_grid_and_outliers():
    nothing = np.zeros((0, 3), np.float32)
    empty = grid_message(nothing, np.zeros(0, bool), HEADER, resolution=0.1, max_size=64)
    assert not empty.data
    positions = np.zeros((9, 3), np.float32)
    positions[8] = 1e6
    grid = grid_message(positions, np.ones(9, bool), HEADER, resolution=0.1, max_size=64)
    assert (grid.info.width, grid.info.height, list(grid.data)) == (1, 1, [OBSERVED])


def test_grid_is_smaller_than_a_ring():
    angle = np.linspace(0, 2 * np.pi, 100)
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1).astype(np.float32) * 150
    grid = grid_message(ring, np.ones(100, bool), HEADER, resolution=0.1, max_size=64)
    assert OBSERVED in grid.data


def test_viewer_decodes_points():
    logged = {}
    recording = SimpleNamespace(set_time=lambda *a, **k: None, log=logged.__setitem__)
    points = Points(
        positions=np.array([[1.5, -2.0, 0.25], [3.0, 4.0, 5.0]], np.float32),
        colours=np.array([[255, 128, 1], [2, 3, 4]], np.uint8),
        observed=np.array([True, False]),
    )
    log_points(recording, cloud_message(points, HEADER))
    shown = logged['world/memory']
    assert shown.positions.as_arrow_array().to_pylist() == points.positions.tolist()
    assert shown.colors.as_arrow_array().to_pylist() == [0xFF8001FF, 0x020304FF]
