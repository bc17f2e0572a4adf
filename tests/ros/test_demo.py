"""The demo runs with a small random model in place of mirage-tiny."""

from __future__ import annotations

from collections.abc import Iterator
import glob
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import cv2
from models import save_small_model
from processes import shared_memory
import pytest

from mirage_model.data.splits import read_splits, split_of
from mirage_ros.tools.config import SCENES, DemoConfig

pytestmark = [pytest.mark.slow, pytest.mark.alone]

KEYS = {
    'chunks',
    'frames',
    'coverage_mean',
    'observed_mean',
    'psnr_db',
    'psnr_warp_db',
    'psnr_repeat_seed_db',
    'psnr_codec_db',
    'seconds_per_chunk',
    'frames_per_second',
    'map',
    'path',
    'weights',
    'processes',
}


def test_a_named_map_replaces_the_scenes():
    assert (
        DemoConfig().path == SCENES['doom'] and DemoConfig(scene='house').path == SCENES['house']
    )
    assert DemoConfig(map_name='room-0008', kind='turn').path == ('room-0008', 'turn')


def test_maps_of_the_scenes_are_held_out():
    splits = read_splits()
    assert {split_of(map_name, splits) for map_name, _ in SCENES.values()} == {'test'}


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp('model'))


@pytest.fixture
def scene() -> str:
    return 'doom'


@pytest.fixture
def demo(tmp_path, model_folder, scene) -> Iterator[subprocess.Popen]:
    """Run the demo in a domain that no other test uses."""
    command = [sys.executable, '-m', 'mirage_ros.tools.demo', '--out', tmp_path, '--frames', '24']
    command += ['--scene', scene]
    command += ['--recording', tmp_path / 'demo.rrd']
    running = subprocess.Popen(
        [*map(str, command), '--model-folder', str(model_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            'ROS_DOMAIN_ID': str(1 + (int(os.environ['ROS_DOMAIN_ID']) + 50) % 101),
        },
    )
    yield running
    running.terminate()
    running.wait()


def children(pid: int) -> list[int]:
    found = []
    for path in glob.glob(f'/proc/{pid}/task/*/children'):
        found += [int(child) for child in Path(path).read_text().split()]
    return found + [grandchild for child in found for grandchild in children(child)]


@pytest.fixture
def before() -> set[str]:
    return shared_memory()


@pytest.mark.parametrize('scene', ['doom', 'house'])
def test_demo_writes_its_results_and_ends(before, demo, tmp_path, scene):
    said, _ = demo.communicate(timeout=280)
    assert demo.returncode == 0, said
    assert 'chunk 3 of 3' in said
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert set(summary) >= KEYS
    assert (summary['chunks'], summary['frames']) == (3, 24)
    assert (summary['map'], summary['path']) == SCENES[scene]
    assert 0 < summary['observed_mean'] <= summary['coverage_mean'] <= 1
    assert summary['weights']['name'] == 'small-random' and len(summary['weights']['sha256']) == 64
    assert summary['processes']['client'] == demo.pid != summary['processes']['node']
    assert not Path(f'/proc/{summary["processes"]["node"]}').exists()
    assert cv2.imread(str(tmp_path / 'contact_sheet.png')) is not None
    video = cv2.VideoCapture(str(tmp_path / 'video.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 24
    entities = run_rerun('rrd', 'print', tmp_path / 'demo.rrd')
    for name in ('/observed', '/visibility', '/world/path', '/world/imagined_camera/frame'):
        assert name in entities, entities
    assert shared_memory(unused=True) <= before


def run_rerun(*arguments) -> str:
    done = subprocess.run(
        [sys.executable, '-m', 'rerun', *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_interrupted_demo_leaves_nothing(before, demo):
    while 'asked for' not in (line := demo.stdout.readline()):
        assert line, 'the demo ended by itself'
    started = children(demo.pid)
    assert started
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, said
    assert 'Traceback' not in said
    deadline = time.monotonic() + 10
    while any(Path(f'/proc/{pid}').exists() for pid in started):
        assert time.monotonic() < deadline, 'a process was left behind'
        time.sleep(0.1)
    assert shared_memory(unused=True) <= before


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--frmes', '24'], '--frmes'),
        (['--ros-args', '-r', '__node:=x', '--', '--kind', '3', '--frmes'], '--frmes'),
    ],
)
def test_a_wrong_argument_is_rejected(arguments, said):
    done = subprocess.run(
        [sys.executable, '-m', 'mirage_ros.tools.demo', *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2 and said in done.stderr
    assert '__node' not in done.stderr


def test_missing_simulator_is_named(tmp_path):
    hidden = "import sys; sys.modules['vizdoom'] = None; from mirage_ros.tools.demo import main; "
    done = subprocess.run(
        [sys.executable, '-c', hidden + 'sys.exit(main())'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "pip install 'mirage[worlds]'" in done.stderr and 'Traceback' not in done.stderr
