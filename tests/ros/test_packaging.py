"""The package is built by colcon and by pip and starts from where it is installed."""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig
import zipfile

from models import save_small_model
from processes import NodeProcess
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PREFIX = Path(sys.prefix)
SITE_PACKAGES = (
    Path('lib') / f'python{sys.version_info.major}.{sys.version_info.minor}' / 'site-packages'
)


def run(command: list, **keywords) -> str:
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **keywords,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """Return the tree as a clone has it, with nothing that was built."""
    tree = tmp_path_factory.mktemp('workspace') / 'src' / 'mirage'
    listed = run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT)
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp('model'))


def package_data(folder: Path) -> set[str]:
    files = (p for p in folder.rglob('*') if p.suffix in ('.json', '.yaml', '.safetensors'))
    return {str(p.relative_to(folder)) for p in files}


def test_colcon_build_and_the_node_starts(source, model_folder, tmp_path):
    """The build is that of a machine with ROS 2, with the file that mends the wheels' exports."""
    workspace = source.parents[1]
    environment = {
        **os.environ,
        'PATH': f'{PREFIX}/bin:{os.environ["PATH"]}',
        'AMENT_PREFIX_PATH': str(PREFIX),
        'CMAKE_PREFIX_PATH': str(PREFIX),
    }
    fix = source / 'cmake' / 'ros_wheels_fix.cmake'
    python = PREFIX / 'bin' / 'python'
    run(
        [PREFIX / 'bin' / 'colcon', 'build', '--event-handlers', 'console_direct+', '--cmake-args']
        + [
            f'-DCMAKE_PROJECT_INCLUDE={fix}',
            f'-DPython3_EXECUTABLE={python}',
            '-DBUILD_TESTING=OFF',
        ],
        cwd=workspace,
        env=environment,
    )
    installed = workspace / 'install' / 'mirage'
    assert package_data(installed / SITE_PACKAGES / 'mirage_model') == package_data(
        source / 'mirage_model'
    )
    for name in (
        'launch/mirage.launch.py',
        'config/mirage.yaml',
        'config/fastdds.xml',
        'package.xml',
    ):
        assert (installed / 'share' / 'mirage' / name).is_file()
    sourced = f'. {workspace}/install/local_setup.bash && cd {tmp_path} && exec "$@"'
    where = run(
        [
            'bash',
            '-c',
            sourced,
            '_',
            'python',
            '-c',
            'import mirage_ros, mirage; print(mirage_ros.__file__, mirage.__file__)',
        ],
        env=environment,
    )
    assert all(path.startswith(str(installed)) for path in where.split())
    node = NodeProcess(
        tmp_path / 'node.log',
        program=['bash', '-c', sourced, '_', str(installed / 'lib' / 'mirage' / 'mirage_node')],
        environment=environment,
        model__folder=f"'{model_folder}'",
    )
    node.stop()


def test_pip_install_and_the_node_starts(source, model_folder, tmp_path):
    """The environment sees the dependencies of this one but not its mirage."""
    run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv'])
    python = tmp_path / 'venv' / 'bin' / 'python'
    below = Path(sysconfig.get_path('purelib'))
    beside = tmp_path / 'venv' / SITE_PACKAGES
    for path in below.iterdir():
        own = 'mirage' in path.name or path.name.startswith('tf2_msgs')
        if not own and not (beside / path.name).exists():
            (beside / path.name).symlink_to(path)
    run(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '--no-build-isolation',
            '--no-deps',
            '--wheel-dir',
            tmp_path,
            source,
        ],
        env={**os.environ, 'PATH': f'{PREFIX}/bin:{os.environ["PATH"]}'},
    )
    (wheel,) = tmp_path.glob('mirage-*.whl')
    run(
        [
            sys.executable,
            '-m',
            'pip',
            '--python',
            python,
            'install',
            '--no-deps',
            '--no-index',
            wheel,
        ]
    )
    assert package_data(beside / 'mirage_model') == package_data(source / 'mirage_model')
    assert (tmp_path / 'venv' / 'share' / 'mirage' / 'config' / 'fastdds.xml').is_file()
    fresh = {
        '_ROS_WHEELS_BOOTSTRAP_COMPLETE': ''
    }  # else the libraries of this environment alone are found
    where = run(
        [python, '-c', 'import mirage_ros, mirage; print(mirage_ros.__file__, mirage.__file__)'],
        cwd=tmp_path,
    )
    assert all(path.startswith(str(beside)) for path in where.split())
    node = NodeProcess(
        tmp_path / 'node.log',
        program=[str(tmp_path / 'venv' / 'bin' / 'mirage_node')],
        environment=fresh,
        model__folder=f"'{model_folder}'",
    )
    node.stop()


def test_pip_wheel_without_interfaces(source, tmp_path):
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps']
    run(
        [*command, '--wheel-dir', tmp_path, source],
        env={**os.environ, 'MIRAGE_WITHOUT_INTERFACES': '1'},
    )
    (wheel,) = tmp_path.glob('mirage-*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert 'mirage_model/extras.py' in names
    assert not any(name.startswith('mirage/') or '.data/' in name for name in names)
