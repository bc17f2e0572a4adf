"""Declare the fields of frozen dataclasses as ROS parameters.

A group of parameters is a nested dataclass, and its fields have names such as ``keyframe.angle``
in ROS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
import textwrap
from typing import Any, Literal, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from mirage_model.io import check_output
from mirage_model.options import check_exists

T = TypeVar('T')


def parameter(
    default: Any,
    description: str,
    *,
    bounds: tuple[float, float] | tuple[int, int] | None = None,
    among: tuple[str, ...] = (),
    example: tuple[Any, ...] = (),
    reads: Literal['', 'file', 'folder'] = '',
    writes: bool = False,
) -> Any:
    """Declare a field with the description that ROS tools show.

    Args:
        bounds: Smallest and largest value that is allowed.
        among: Texts that are allowed.
        example: Value of a list that is empty by default; its type is that of the parameter.
        reads: Kind of a path that is read, see `check_paths`.
        writes: Whether the path is that of a folder to write to.
    """
    if among:
        description += ' One of: ' + ', '.join(among) + '.'
    metadata: dict[str, Any] = {
        'description': description,
        'bounds': bounds,
        'among': among,
        'example': example,
    }
    metadata |= {'reads': reads, 'writes': writes}
    return field(default=default, metadata=metadata)


def leaves(kind: type, prefix: str = '') -> Iterator[tuple[str, Field]]:
    """Yield the ROS name and the dataclass field of each parameter."""
    for item in fields(kind):
        if item.default_factory is MISSING:
            yield prefix + item.name, item
        else:
            assert isinstance(item.default_factory, type)
            yield from leaves(item.default_factory, f'{prefix}{item.name}.')


def from_values(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return parameters by their ROS names; the others have their defaults. Raises ValueError."""
    known = dict(leaves(kind))
    for name, value in values.items():
        if name not in known:
            raise ValueError(f'{name}: not a parameter')
        among = known[name].metadata['among']
        if among and value not in among:
            raise ValueError(f'{name}: {value!r} is not one of {among}')
        bounds = known[name].metadata['bounds']
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            raise ValueError(f'{name}: {value}, must be in {bounds[0]}..{bounds[1]}')
    return _build(kind, values, '')


def check_paths(parameters: object, *, writes: bool) -> None:
    """Raise ValueError that names the parameter of a path that cannot be read, or written to if
    ``writes``."""
    for name, item in leaves(type(parameters)):
        path = attrgetter(name)(parameters)
        if item.metadata['reads']:
            check_exists(name, path, item.metadata['reads'])
        if writes and item.metadata['writes'] and path:
            check_output(Path(path), name)


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    assert is_dataclass(kind)
    chosen = {}
    for item in fields(kind):
        name = prefix + item.name
        if item.default_factory is not MISSING:
            assert isinstance(item.default_factory, type)
            chosen[item.name] = _build(item.default_factory, values, f'{name}.')
        elif name in values:
            chosen[item.name] = values[name]
    return kind(**chosen)


def declare(node: Node, kind: type[T]) -> T:
    """Declare all parameters of a dataclass on a node and return their values."""
    return from_values(
        kind, {name: declare_field(node, name, item) for name, item in leaves(kind)}
    )


def declare_field(node: Node, name: str, item: Field) -> Any:
    """Declare one parameter on a node and return its value."""
    bounds = item.metadata['bounds']
    descriptor = ParameterDescriptor(
        description=item.metadata['description'],
        additional_constraints=', '.join(item.metadata['among']),
        read_only=True,
    )
    if bounds is not None:
        low, high = bounds
        if isinstance(item.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    if not isinstance(item.default, tuple):
        return node.declare_parameter(name, item.default, descriptor).value
    # an empty list has no type in YAML
    numbers = isinstance(item.metadata['example'][0], float)
    list_kind = Parameter.Type.DOUBLE_ARRAY if numbers else Parameter.Type.STRING_ARRAY
    return tuple(node.declare_parameter(name, list_kind, descriptor).value or ())


def unknown_parameters(node: Node, kind: type) -> list[str]:
    """Return a sentence for each parameter that was given to a node and that it does not have."""
    known = [*dict(leaves(kind)), 'use_sim_time']
    sentences = []
    for name in sorted(set(node._parameter_overrides) - set(known)):
        if not node.has_parameter(name):  # rclpy declares its own, such as qos_overrides
            similar = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f', did you mean {similar[0]}?' if similar else ''
            sentences.append(f'parameter {name}: unknown and ignored{hint}')
    return sentences


def as_yaml(kind: type) -> str:
    """Return a parameter file: each parameter with its description, range and default."""
    lines = [
        '# Parameters of the node with their defaults.',
        '# Generated by `python -m mirage_ros.parameters > config/mirage.yaml`.',
        '/**:',
        '  ros__parameters:',
    ]
    open_groups: list[str] = []
    for name, item in leaves(kind):
        *groups, last = name.split('.')
        lines.append('')
        for depth, group in enumerate(groups):
            if open_groups[: depth + 1] != groups[: depth + 1]:
                lines.append('  ' * (depth + 2) + f'{group}:')
        open_groups = groups
        indent = '  ' * (len(groups) + 2)
        text = item.metadata['description']
        if bounds := item.metadata['bounds']:
            text += f' Range {bounds[0]} to {bounds[1]}.'
        comment = f'{indent}# '
        lines += textwrap.wrap(text, 110, initial_indent=comment, subsequent_indent=comment)
        value = item.default
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, str):
            value = f"'{value}'"
        # ROS rejects an empty list without a type
        lines.append(
            f'{indent}{last}: {value}'
            if value != ()
            else f'{indent}# {last}: {list(item.metadata["example"])}'
        )
    return '\n'.join(lines) + '\n'
