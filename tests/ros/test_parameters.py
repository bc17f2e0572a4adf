"""Parameters come from one dataclass."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import rclpy
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter
import yaml

from mirage_ros.parameters import NodeParameters, as_yaml, declare

CONFIG = Path(__file__).resolve().parents[2] / 'config' / 'mirage.yaml'


def declared(*overrides: Parameter) -> tuple[Node, NodeParameters]:
    node = Node('settings', parameter_overrides=list(overrides))
    try:
        return node, declare(node)
    finally:
        node.destroy_node()


def test_config_file_is_the_dataclass():
    assert CONFIG.read_text() == as_yaml()
    parameters = yaml.safe_load(as_yaml())['/**']['ros__parameters']
    assert NodeParameters(**parameters) == NodeParameters()
    assert set(parameters) | {'base_from_camera'} == {item.name for item in fields(NodeParameters)}


def test_declared_with_defaults_ranges_and_descriptions(ros):
    node = Node('settings')
    assert declare(node) == NodeParameters()
    for item in fields(NodeParameters):
        descriptor = node.describe_parameter(item.name)
        assert descriptor.description and descriptor.read_only
        ranges = [*descriptor.floating_point_range, *descriptor.integer_range]
        assert bool(ranges) == (item.metadata['low'] is not None)
    node.destroy_node()


def test_values_and_their_limits(ros):
    numbers = [0.0, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5]
    _, settings = declared(
        Parameter('queue_size', value=9), Parameter('base_from_camera', value=numbers)
    )
    assert settings.queue_size == 9 and settings.base_from_camera == tuple(numbers)
    with pytest.raises(InvalidParameterValueException):
        declared(Parameter('jpeg_quality', value=101))
    with pytest.raises(ValueError, match='compression'):
        declared(Parameter('compression', value='gif'))
    with pytest.raises(ValueError, match='needs 7 numbers'):
        declared(Parameter('base_from_camera', value=numbers[:6]))
    with pytest.raises(ValueError, match='world_frame must not be empty'):
        declared(Parameter('world_frame', value=''))
    assert rclpy.ok()
