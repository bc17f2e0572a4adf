"""The examples run as they are, and stay short."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys

import cv2
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / 'examples'
AHEAD = [0.2, 0.0, 0.4, -0.5, 0.5, -0.5, 0.5]
"""The optical frame on the base: x, y, z in metres and a quaternion."""


def start(name: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize('path', sorted(EXAMPLES.glob('*.py')), ids=lambda path: path.name)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) < 60


def run_beside_a_camera(client, node, example: subprocess.Popen) -> str:
    """Send the seed until the example ends, and return what it printed."""
    client.connect()
    while example.poll() is None:
        client.send_seed()
        client.spin(0.1)
    printed = example.communicate(timeout=60)[0]
    assert example.returncode == 0, printed + node.says()
    return printed


def test_plan_ahead_prints_each_chunk(client, start_node):
    node = start_node(**{'frames.base_from_camera': AHEAD})
    client.connect()
    client.send_seed()
    client.spin(1.0)
    printed = run_beside_a_camera(client, node, start('plan_ahead.py'))
    assert printed.startswith('chunk 1 of 2: 16 frames, observed ')
    assert printed.count('\n') == 2


def test_imagine_from_picture_writes_a_sheet(tmp_path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / 'picture.png'), rng.integers(0, 256, (192, 320, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'depth.png'), np.full((192, 320), 2000, np.uint16))
    files = [str(tmp_path / name) for name in ('picture.png', 'sheet.png', 'depth.png')]
    example = start('imagine_from_picture.py', *files)
    printed = example.communicate(timeout=200)[0]
    assert example.returncode == 0 and '16 frames in' in printed, printed
    assert cv2.imread(str(tmp_path / 'sheet.png')).shape == (96, 5 * 160, 3)
