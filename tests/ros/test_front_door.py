"""Set-up, packaging and commands, as a newcomer meets them."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

from mirage_model.extras import EXTRAS, explain

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
MODULES = {'omgifol': 'omg', 'rerun-sdk': 'rerun'}
"""Modules that are not named like their package."""
INSTALLED = {
    extra: {MODULES.get(Requirement(line).name, Requirement(line).name) for line in lines}
    for extra, lines in PROJECT['optional-dependencies'].items()
} | {'': set()}
"""Modules that each extra brings."""
INSTALLED['viewer'].add('pyarrow')  # rerun-sdk depends on it
HELP = [
    ('mirage', ''),
    ('mirage_node', ''),
    ('mirage_demo', 'worlds'),
    ('mirage_replay_node', 'replay'),
    ('mirage_viewer', 'viewer'),
]
"""Each console script with the extra that it needs."""

PROGRAM = """
import importlib, sys

class Without:
    # a finder to which the hidden packages are not installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

hidden, place = sys.argv.pop(1).split(','), sys.argv.pop(1)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
module, _, function = place.partition(':')
sys.argv[0] = module
sys.exit(getattr(importlib.import_module(module), function)())
"""


def run_script(name: str, *words: str, extra: str) -> subprocess.CompletedProcess[str]:
    """Run a console script where no other extra is installed."""
    hidden = set(EXTRAS) - INSTALLED[extra]
    return subprocess.run(
        [sys.executable, '-c', PROGRAM, ','.join(hidden), PROJECT['scripts'][name], *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'},
        timeout=200,
    )


def test_scripts_under_test_are_all_there_are():
    assert {name for name, _ in HELP} == set(PROJECT['scripts'])


@pytest.mark.parametrize(('name', 'extra'), HELP)
def test_help_in_its_own_extra(name, extra):
    done = run_script(name, '--help', extra=extra)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


@pytest.mark.parametrize(
    ('name', 'words', 'installed', 'extra'),
    [
        ('mirage', ['bench', 'memory'], '', 'engine'),
        ('mirage', ['evaluate', 'tiny'], 'engine', 'worlds'),
        (
            'mirage',
            ['replay', '.', '--image=/a', '--camera-info=/b', '--pose=/c'],
            'engine',
            'replay',
        ),
        ('mirage_demo', [], '', 'worlds'),
        ('mirage_viewer', [], '', 'viewer'),
    ],
)
def test_missing_extra_is_named(name, words, installed, extra, tmp_path):
    out = ['--out', str(tmp_path / 'out')] if name != 'mirage_viewer' else []
    done = run_script(name, *words, *out, extra=installed)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"pip install 'mirage[{extra}]'" in done.stderr
    assert 'Traceback' not in done.stderr


def test_explain_follows_the_cause():
    missing = ModuleNotFoundError("No module named 'mujoco.egl'", name='mujoco.egl')
    error = ImportError('the rooms cannot be drawn')
    assert explain(error) == 'the rooms cannot be drawn'
    error.__cause__ = missing
    assert explain(error) == "needs mujoco: pip install 'mirage[worlds]'"


@pytest.mark.parametrize(('module', 'extra'), EXTRAS.items())
def test_extra_brings_the_module_that_names_it(module, extra):
    assert module in INSTALLED[extra]


def test_pins_lie_in_the_ranges_of_the_metadata():
    pins = {}
    for file in (ROOT / 'requirements').glob('*.txt'):
        if file.stem != 'numpy1':
            lines = (line.split('#')[0].strip() for line in file.read_text().splitlines())
            parsed = [Requirement(line) for line in lines if line]
            pins |= {canonicalize_name(pin.name): pin.specifier for pin in parsed}
    ranges = [*PROJECT['dependencies'], *sum(PROJECT['optional-dependencies'].values(), [])]
    for wanted in map(Requirement, ranges):
        if wanted.name != 'mirage':
            (pin,) = pins[canonicalize_name(wanted.name)]
            assert pin.operator == '==' and wanted.specifier.contains(pin.version), wanted


def test_continuous_integration_runs_make_test():
    lines = (ROOT / '.ci' / 'run').read_text().splitlines()
    assert lines == ['#!/usr/bin/env bash', 'cd "$(dirname "$0")/.."', 'exec make test']
