"""A wrong value of a parameter is named, with the value and what is allowed."""

from __future__ import annotations

from dataclasses import MISSING
import math

import pytest
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from mirage_ros.declaration import check_paths, declare_field, from_values, leaves
from mirage_ros.parameters import NodeParameters

LEAVES = dict(leaves(NodeParameters))


def errors_of(values: dict[str, object]) -> dict[str, str]:
    """The sentence of each parameter of a node, '' where it is taken."""
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    node = Node('values', parameter_overrides=overrides)
    said = dict.fromkeys(values, '')
    for name in values:
        try:
            value = declare_field(node, name, LEAVES[name])
            from_values(NodeParameters, {name: value})
        except (ValueError, ParameterException) as error:
            said[name] = str(error)
    node.destroy_node()
    return said


def wrong_values(name: str) -> list[object]:
    item = LEAVES[name]
    default, bounds = item.default, item.metadata['bounds']
    if isinstance(default, bool):
        return [1, 'no']
    if isinstance(default, tuple):
        return ['text', 1]
    if isinstance(default, str):
        return [5, True] + (['nonsense'] if item.metadata['among'] else [])
    outside = [bounds[0] - 1, bounds[1] + 1] if bounds is not None else []
    if isinstance(default, float):
        return [float(value) for value in outside] + [math.nan, math.inf, 'fast', True]
    return outside + ['many', 0.5, True]


@pytest.mark.parametrize('number', range(6))
def test_wrong_values_of_every_parameter_are_named(number, ros):
    wrong = {name: wrong_values(name) for name in LEAVES}
    values = {name: these[number] for name, these in wrong.items() if number < len(these)}
    for name, said in errors_of(values).items():
        assert name in said and str(values[name]) in said, (name, values[name], said)


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        (
            {'frames.base_from_camera': (0.0,) * 6},
            'frames.base_from_camera: needs 7 numbers',
        ),
        ({'frames.base_from_camera': (0.0,) * 7}, 'frames.base_from_camera: the quaternion has'),
        ({'frames.base_from_camera': (math.nan,) * 7}, 'frames.base_from_camera: position'),
        ({'frames.world': ''}, 'frames.world: must not be empty'),
        ({'sensors.accept': ('all',)}, "sensors.accept: 'all' is not one of baseline"),
        ({'tf.enabled': False, 'observe.pose_source': 'tf'}, 'tf.enabled: is false, but observe'),
        ({'memory.resident': 5}, 'memory.pages: is empty'),
        ({'engine.address': 'grpcs://a:1', 'model.folder': '/x'}, "model.folder: is '/x', but"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_values_that_are_wrong_together(values, text):
    with pytest.raises(ValueError) as error:
        from_values(NodeParameters, values)
    assert str(error.value).startswith(text)


PATHS = {
    name: item.metadata
    for name, item in LEAVES.items()
    if item.metadata['reads'] or item.metadata['writes']
}


@pytest.mark.parametrize('name', PATHS)
def test_paths_that_cannot_be_used_are_named(name, tmp_path):
    (tmp_path / 'file').write_text('')
    wrong = {
        'file': [tmp_path, tmp_path / 'none'],
        'folder': [tmp_path / 'file', tmp_path / 'none'],
    }
    for path in wrong.get(PATHS[name]['reads'], [tmp_path / 'file', tmp_path / 'file' / 'in']):
        with pytest.raises(ValueError) as error:
            check_paths(from_values(NodeParameters, {name: str(path)}), writes=True)
        assert str(error.value).startswith(f'{name}: {path} ')


def test_defaults_are_allowed():
    assert all(item.default is not MISSING for item in LEAVES.values())
    check_paths(NodeParameters(), writes=True)
