"""Parameters come from nested dataclasses."""

from __future__ import annotations

from pathlib import Path

import pytest
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter
import yaml

from mirage_ros.declaration import as_yaml, declare, from_values, leaves
from mirage_ros.parameters import NodeParameters

CONFIG = Path(__file__).resolve().parents[2] / 'config' / 'mirage.yaml'


def declared(**values) -> NodeParameters:
    overrides = [Parameter(name.replace('__', '.'), value=value) for name, value in values.items()]
    node = Node('parameters', parameter_overrides=overrides)
    try:
        return declare(node, NodeParameters)
    finally:
        node.destroy_node()


def flat(values: dict, prefix: str = '') -> dict:
    found = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        found |= flat(value, f'{prefix}{name}.') if nested else {prefix + name: value}
    return found


def test_config_file_is_generated():
    assert CONFIG.read_text() == as_yaml(NodeParameters)
    values = flat(yaml.safe_load(as_yaml(NodeParameters))['/**']['ros__parameters'])
    assert from_values(NodeParameters, values) == NodeParameters()
    names = {name for name, _ in leaves(NodeParameters)}
    assert set(values) | {'frames.base_from_camera', 'sensors.accept'} == names


def test_declared_with_defaults_ranges_and_descriptions(ros):
    node = Node('parameters')
    assert declare(node, NodeParameters) == NodeParameters()
    for name, item in leaves(NodeParameters):
        descriptor = node.describe_parameter(name)
        assert descriptor.description.endswith('.') and descriptor.read_only
        ranges = [*descriptor.floating_point_range, *descriptor.integer_range]
        assert bool(ranges) == (item.metadata['bounds'] is not None)
    node.destroy_node()


def test_values_and_their_limits(ros):
    numbers = [0.0, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5]
    parameters = declared(
        limits__queue_size=9, frames__base_from_camera=numbers, qos__sensor__depth=7
    )
    assert parameters.limits.queue_size == 9 and parameters.qos.sensor.depth == 7
    assert parameters.frames.base_from_camera == tuple(numbers)
    with pytest.raises(InvalidParameterValueException):
        declared(compression__jpeg_quality=101)
    with pytest.raises(ValueError, match="compression.format: 'gif' is not one of"):
        declared(compression__format='gif')
    with pytest.raises(ValueError, match='base_from_camera: needs 7 numbers .*, got 6'):
        declared(frames__base_from_camera=numbers[:6])
    with pytest.raises(ValueError, match='frames.world: must not be empty'):
        declared(frames__world='')
    with pytest.raises(ValueError, match='frames.wrold: not a parameter'):
        from_values(NodeParameters, {'frames.wrold': 'map'})
