"""Build for pip: the Python packages, and the ROS interfaces by CMake.

pyproject.toml has the metadata. colcon does not read this file: package.xml says
ament_cmake.
"""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SITE_PACKAGES = f'lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages'
OWN_PACKAGES = ('mirage_model', 'mirage_ros')


def ros_prefix() -> Path:
    """Return the prefix of ROS 2: this environment, or the one whose tools are on the path."""
    candidates = [
        Path(sys.prefix),
        *(Path(d).parent for d in os.environ['PATH'].split(os.pathsep)),
    ]
    candidates += [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    for candidate in candidates:
        if (candidate / 'share' / 'rosidl_default_generators').is_dir():
            return candidate
    raise SystemExit(
        'mirage: ROS 2 was not found, so its interfaces cannot be built. '
        'Install requirements/build.txt first and pass --no-build-isolation.'
    )


def build_interfaces() -> list[tuple[str, list[str]]]:
    """Build and stage the interfaces; return them as setuptools' data_files."""
    prefix, stage = ros_prefix(), ROOT / 'build' / 'stage'
    shutil.rmtree(stage, ignore_errors=True)
    build_package(ROOT, ROOT / 'build' / 'interfaces', stage, prefix)
    if not (prefix / 'share' / 'tf2_ros').is_dir():  # the wheels have no tf2
        build_package(ROOT / 'cmake' / 'tf2_msgs', ROOT / 'build' / 'tf2_msgs', stage, prefix)
    folders: dict[str, list[str]] = {}
    for file in sorted(stage.rglob('*')):
        where = file.relative_to(stage)
        if not file.is_file() or file.suffix == '.pyc' or '.egg-info' in str(where):
            continue
        if where.is_relative_to(SITE_PACKAGES) and where.parts[3] in OWN_PACKAGES:
            continue
        folders.setdefault(str(where.parent), []).append(str(file.relative_to(ROOT)))
    return sorted(folders.items())


def build_package(source: Path, build: Path, stage: Path, prefix: Path) -> None:
    """Build an interface package and install it to ``stage``.

    Raises:
        SystemExit: A command failed.
    """
    path = os.pathsep.join([str(prefix / 'bin'), os.environ['PATH']])
    environment = os.environ | {'AMENT_PREFIX_PATH': str(prefix), 'PATH': path}
    generator = ['-G', 'Ninja'] if shutil.which('ninja') else []
    for command in (
        ['cmake', '-S', source, '-B', build, '--fresh', *generator]
        + [
            f'-DCMAKE_PREFIX_PATH={prefix}',
            f'-DCMAKE_INSTALL_PREFIX={stage}',
            '-DBUILD_TESTING=OFF',
        ]
        + [f'-DPython3_EXECUTABLE={sys.executable}', f'-DPYTHON_EXECUTABLE={sys.executable}']
        + [f'-DCMAKE_PROJECT_INCLUDE={ROOT / "cmake" / "ros_wheels_fix.cmake"}'],
        ['cmake', '--build', build, '--parallel', str(os.cpu_count())],
        ['cmake', '--install', build],
    ):
        words = [str(word) for word in command]
        if subprocess.run(words, env=environment).returncode:
            # setuptools passes over Exceptions in editable installs
            raise SystemExit(f'mirage: the ROS interfaces could not be built: {" ".join(words)}')


class BuildWithInterfaces(build_py):
    """Build the ROS interfaces too, unless MIRAGE_WITHOUT_INTERFACES leaves them to colcon."""

    def run(self) -> None:
        super().run()
        if os.environ.get('MIRAGE_WITHOUT_INTERFACES'):
            return
        self.distribution.data_files = [*(self.distribution.data_files or []), *build_interfaces()]


class BinaryDistribution(Distribution):
    """Mark the wheel as bound to a platform, and as one with data files."""

    def has_ext_modules(self) -> bool:
        return True

    def has_data(self) -> bool:
        return bool(self.data_files)


setup(
    version=re.search(r'<version>(.+?)</version>', (ROOT / 'package.xml').read_text())[1],
    packages=find_packages(include=['mirage_model*', 'mirage_ros*']),
    package_data={'mirage_model': ['weights/**/*', 'worlds/*.yaml', 'worlds/*.json']},
    cmdclass={'build_py': BuildWithInterfaces},
    distclass=BinaryDistribution,
    zip_safe=False,
)
