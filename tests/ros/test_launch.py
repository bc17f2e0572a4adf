"""Launch files, read through stand-ins of `launch` and `launch_ros` that record declarations."""

from __future__ import annotations

import importlib.util
from pathlib import Path
import sys
from types import ModuleType

import pytest

from mirage_ros.declaration import leaves
from mirage_ros.parameters import NodeParameters

LAUNCH = Path(__file__).resolve().parents[2] / 'launch'


class Recorded:
    """Records the objects that were constructed, with their arguments."""

    def __init__(self, kind: str, *arguments, **keywords):
        self.kind, self.arguments, self.keywords = kind, arguments, keywords

    def __eq__(self, other) -> bool:
        return vars(self) == vars(other)

    def __repr__(self) -> str:
        return f'{self.kind}{self.arguments}{self.keywords}'


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, *names: str) -> None:
    made = ModuleType(module)
    for name in names:
        setattr(made, name, lambda *a, _name=name, **k: Recorded(_name, *a, **k))
    monkeypatch.setitem(sys.modules, module, made)


@pytest.fixture
def described(monkeypatch):
    stand_in(monkeypatch, 'launch', 'LaunchDescription')
    stand_in(
        monkeypatch,
        'launch.actions',
        'DeclareLaunchArgument',
        'SetEnvironmentVariable',
        'ExecuteProcess',
    )
    stand_in(monkeypatch, 'launch.conditions', 'IfCondition')
    stand_in(monkeypatch, 'launch.substitutions', 'LaunchConfiguration', 'EqualsSubstitution')
    stand_in(monkeypatch, 'launch_ros', 'Anything')
    stand_in(monkeypatch, 'launch_ros.actions', 'Node')
    stand_in(monkeypatch, 'launch_ros.substitutions', 'ExecutableInPackage')

    def describe(name: str) -> list[Recorded]:
        spec = importlib.util.spec_from_file_location(
            name.replace('.', '_'), LAUNCH / f'{name}.launch.py'
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (entities,) = module.generate_launch_description().arguments
        return entities

    return describe


def configuration(name: str) -> Recorded:
    return Recorded('LaunchConfiguration', name)


def used(value) -> set[str]:
    """Return the names of all launch configurations that were recorded."""
    if isinstance(value, Recorded):
        if value.kind == 'LaunchConfiguration':
            return {value.arguments[0]}
        return used(value.arguments) | used(value.keywords)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return set().union(*map(used, value)) if value else set()
    return set()


@pytest.mark.parametrize('name', ['mirage', 'demo'])
def test_every_argument_is_declared_once_and_used(described, name):
    entities = described(name)
    declared = [e.arguments[0] for e in entities if e.kind == 'DeclareLaunchArgument']
    assert len(declared) == len(set(declared))
    assert all(e.keywords['description'] for e in entities if e.kind == 'DeclareLaunchArgument')
    assert used([e for e in entities if e.kind != 'DeclareLaunchArgument']) == set(declared)


def test_node(described):
    entities = described('mirage')
    defaults = {
        e.arguments[0]: e.keywords['default_value']
        for e in entities
        if e.kind == 'DeclareLaunchArgument'
    }
    assert Path(defaults['params_file']).is_file()
    (profile,) = (e for e in entities if e.kind == 'SetEnvironmentVariable')
    assert profile.arguments == ('FASTRTPS_DEFAULT_PROFILES_FILE', configuration('dds_profile'))
    assert Path(defaults['dds_profile']).is_file()
    node, viewer = (e.keywords for e in entities if e.kind == 'Node')
    for each, name in ((node, 'mirage'), (viewer, 'mirage_viewer')):
        assert (each['package'], each['name']) == ('mirage', name)
        assert each['namespace'] == configuration('namespace')
    assert (node['executable'], viewer['executable']) == ('mirage_node', 'mirage_viewer')
    assert viewer['condition'].arguments[0].arguments == (configuration('viewer'), 'rerun')
    params_file, overrides = node['parameters']
    assert params_file == configuration('params_file')
    assert set(overrides) <= {name for name, _ in leaves(NodeParameters)} | {'use_sim_time'}
    assert node['remappings'] == viewer['remappings']
    remapped = dict(node['remappings'])
    assert remapped == {topic: configuration(topic.removeprefix('/')) for topic in remapped}
    assert set(remapped) >= {
        'image',
        'camera_info',
        'depth',
        '/tf',
        'trajectory',
        'path',
        'imagine',
    }
    assert all(defaults[topic.removeprefix('/')] == topic for topic in remapped)


def test_executables_are_installed(described):
    """The launch files start executables that CMake installs to lib/mirage."""
    cmake = (LAUNCH.parent / 'CMakeLists.txt').read_text()
    (demo,) = (e.keywords['cmd'] for e in described('demo') if e.kind == 'ExecuteProcess')
    assert demo[0] == Recorded('ExecutableInPackage', package='mirage', executable='mirage_demo')
    assert demo[1::2] == ['--out', '--model-folder', '--labeller', '--device']
    for name in ('mirage_node', 'mirage_demo', 'mirage_viewer'):
        assert f'scripts/{name}' in cmake and (LAUNCH.parent / 'scripts' / name).is_file()
