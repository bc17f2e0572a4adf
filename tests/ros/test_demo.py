"""The demo itself, with a small random model in the place of the embedded one."""

from __future__ import annotations

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
import pytest

pytestmark = pytest.mark.slow

KEYS = {
    'chunks',
    'frames',
    'coverage_mean',
    'observed_mean',
    'psnr_db',
    'psnr_repeat_seed_db',
    'psnr_codec_db',
    'seconds_per_chunk',
    'frames_per_second',
    'map',
    'weights',
    'processes',
}


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp('model'))


def demo(out: Path, model_folder: Path) -> subprocess.Popen:
    command = [sys.executable, '-m', 'mirage_ros.demo', '--out', out, '--frames', '24']
    # a domain that no test uses
    return subprocess.Popen(
        [*map(str, command), '--model-folder', str(model_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            'ROS_DOMAIN_ID': str(1 + (int(os.environ['ROS_DOMAIN_ID']) + 50) % 101),
        },
    )


def children(pid: int) -> list[int]:
    found = []
    for path in glob.glob(f'/proc/{pid}/task/*/children'):
        found += [int(child) for child in Path(path).read_text().split()]
    return found + [grandchild for child in found for grandchild in children(child)]


def shared_memory() -> set[str]:
    return {path for path in glob.glob('/dev/shm/*') if 'fastrtps' in path or 'ViZDoom' in path}


def test_demo_writes_its_results_and_ends(tmp_path, model_folder):
    before = shared_memory()
    running = demo(tmp_path, model_folder)
    said, _ = running.communicate(timeout=240)
    assert running.returncode == 0, said
    assert 'chunk 3 of 3' in said
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert set(summary) >= KEYS
    assert (summary['chunks'], summary['frames']) == (3, 24)
    assert 0 < summary['observed_mean'] <= summary['coverage_mean'] <= 1
    assert summary['weights']['name'] == 'small-random' and len(summary['weights']['sha256']) == 64
    assert summary['processes']['client'] == running.pid != summary['processes']['node']
    assert not Path(f'/proc/{summary["processes"]["node"]}').exists()
    assert cv2.imread(str(tmp_path / 'contact_sheet.png')) is not None
    video = cv2.VideoCapture(str(tmp_path / 'film.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 24
    assert shared_memory() <= before


def test_interrupted_demo_leaves_nothing(tmp_path, model_folder):
    before = shared_memory()
    running = demo(tmp_path, model_folder)
    while 'asked for' not in (line := running.stdout.readline()):
        assert line, 'the demo ended by itself'
    started = children(running.pid)
    assert started
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert 'Traceback' not in said
    deadline = time.monotonic() + 10
    while any(Path(f'/proc/{pid}').exists() for pid in started):
        assert time.monotonic() < deadline, 'a process was left behind'
        time.sleep(0.1)
    assert shared_memory() <= before
