"""Imports run one way, serving code imports no training code, and the library imports no ROS."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / 'mirage_model').rglob('*.py'))

OWNERS = {
    'diffusers': {
        'model/codec.py',
        'model/backbone.py',
        'model/side_branch.py',
        'model/acceleration.py',
        'model/lora.py',
        'model/sampler.py',
        'model/checkpoint.py',
        'evaluation/benchmarks/gpu.py',
        'training/codec.py',
        'training/dry_run.py',
        'training/stages.py',
        'conversion/names.py',
        'conversion/command.py',
    },
    'peft': {'model/lora.py', 'model/checkpoint.py'},
    'transformers': {
        'model/text.py',
        'perception/adapters.py',
        'perception/labeller.py',
        'conversion/command.py',
    },
    'vizdoom': {'worlds/doom.py'},
    'omg': {'worlds/doom.py'},
    'mujoco': {'worlds/rooms.py'},
    'rosbags': {'data/bag_storage.py', 'evaluation/replay/bag_writer.py'},
    'triton': {'memory/gpu_reader.py'},
    'ray': {'serving/pool.py'},
    'depth_anything_3': {'perception/adapters.py'},
    'unidepth': {'perception/adapters.py'},
    'mapanything': {'perception/adapters.py'},
}
"""Modules that may import a package; others reach it through them."""

LAYERS = (
    (
        'interface.py',
        'allocator.py',
        'extras.py',
        'image_fit.py',
        'engine/config.py',
        'camera.py',
        'messages/',
        'options.py',
        'process_pool.py',
        'io.py',
        'metrics.py',
    ),
    ('model/taehv.py', 'model/codec.py', 'memory/'),
    ('perception/', 'write_filter.py', 'clip.py'),
    ('model/patch_splatting.py',),
    (
        'model/resampler.py',
        'model/side_branch.py',
        'model/backbone.py',
        'model/acceleration.py',
        'model/lora.py',
        'model/text.py',
        'model/conditioning.py',
        'model/history.py',
    ),
    ('model/sampler.py',),
    ('model/checkpoint.py',),
    (
        'model/rollout.py',
        'conversion/',
        'engine/latency.py',
        'engine/keyframes.py',
        'engine/worker.py',
    ),
    ('engine/inputs.py', 'engine/outputs.py', 'engine/session.py'),
    ('engine/candidates.py', 'engine/engine.py'),
    ('serving/',),
    ('worlds/',),
    ('data/',),
    ('training/', 'evaluation/'),
    ('cli.py',),
)
"""From the bottom to the top; a module may import those beside and below it."""

TEACHING = ('worlds', 'data', 'training', 'evaluation', 'clip', 'labels', 'cli')
"""Rooms and modules that train and measure; the others serve."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / 'mirage_model'))


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of everything that a file imports, lazily too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: imports are absolute here'
            yield str(node.module)
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def layer_of(name: str) -> int | None:
    for number, parts in enumerate(LAYERS):
        if any(name == part or (part.endswith('/') and name.startswith(part)) for part in parts):
            return number
    return None


def room_of(module: str) -> str | None:
    """Return the folder or module of `mirage_model` that an import names."""
    parts = module.split('.')
    return parts[1] if parts[0] == 'mirage_model' and len(parts) > 1 else None


def file_of(module: str) -> str | None:
    path = ROOT.joinpath(*module.split('.'))
    for candidate in (path.with_suffix('.py'), path / '__init__.py'):
        if candidate.exists():
            return name_of(candidate)
    return None


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_packages_are_imported_by_their_owners_only(path):
    roots = {module.split('.')[0] for module in imported(path)}
    for package, owners in OWNERS.items():
        assert package not in roots or name_of(path) in owners, (
            f'{name_of(path)} imports {package}'
        )
    assert not roots & {'mirage_ros', 'mirage', 'rclpy', 'pickle', 'dill'}


@pytest.mark.parametrize(
    'path',
    [m for m in MODULES if m.name != '__init__.py' or m.parent.name in ('memory', 'perception')],
    ids=name_of,
)
def test_imports_run_down(path):
    layer = layer_of(name_of(path))
    assert layer is not None, f'{name_of(path)} has no layer: put it into LAYERS'
    for module in imported(path):
        target = file_of(module) if module.startswith('mirage_model.') else None
        if target is not None:
            assert layer_of(target) <= layer, (
                f'{name_of(path)} imports {target}, which lies above it'
            )


def test_serving_imports_no_teaching():
    for path in MODULES:
        if name_of(path).split('/')[0].removesuffix('.py') not in TEACHING:
            teaching = [m for m in imported(path) if room_of(m) in TEACHING]
            assert not teaching, f'{name_of(path)} serves and imports {teaching}'


def test_node_imports_no_teaching():
    for path in sorted((ROOT / 'mirage_ros').glob('*.py')):
        teaching = [m for m in imported(path) if room_of(m) in TEACHING]
        assert not teaching, f'mirage_ros/{path.name} imports {teaching}'


def test_worlds_import_no_data():
    for path in (ROOT / 'mirage_model' / 'worlds').glob('*.py'):
        assert 'data' not in {room_of(m) for m in imported(path)}, path.name


def test_library_imports_no_ros():
    """Import all modules in a fresh process."""
    names = [
        '.'.join(m.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
        for m in MODULES
    ]
    program = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
ros = ('rclpy', 'mirage', 'mirage_ros', 'rosidl_runtime_py', 'rosbags', 'cv_bridge')
roots = {{m: m.split('.')[0] for m in sys.modules}}
loaded = [m for m, r in roots.items() if r in ros or r.endswith(('_msgs', '_interfaces'))]
print('loaded:', sorted(loaded))
"""
    run = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == 'loaded: []'


def test_reading_messages_needs_no_torch():
    """A robot's machine reads messages without torch."""
    names = [
        'image_fit',
        'interface',
        *(f'messages.{m.stem}' for m in MODULES if m.parent.name == 'messages'),
    ]
    program = f"""
import importlib, sys
sys.modules['torch'] = None
for name in {names}:
    importlib.import_module(f'mirage_model.{{name}}')
"""
    run = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr


def test_nothing_is_loaded_from_a_pickle():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = f'{node.value.id}.{node.attr}'
                if (name_of(path), call) == ('conversion/command.py', 'torch.load'):
                    continue
                assert call not in ('torch.load', 'torch.save', 'np.save'), (
                    f'{name_of(path)}: {call}'
                )


def test_imports_of_others_read_weights_alone():
    tree = ast.parse((ROOT / 'mirage_model' / 'conversion' / 'command.py').read_text())
    loads = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'torch.load'
    ]
    assert loads
    for call in loads:
        assert 'weights_only=True' in [ast.unparse(keyword) for keyword in call.keywords]
