"""What the README prints runs as printed."""

from __future__ import annotations

import os
from pathlib import Path
import re
import subprocess
import sys

from models import save_small_model
from processes import NodeProcess, seed_messages
import pytest
from sensor_msgs.msg import CameraInfo, Image

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / 'README.md').read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r'^```(\w*)\n(.*?)^```', README, flags=re.S | re.M)
    return [text for name, text in fenced if name == language]


def test_quick_start(client, tmp_path):
    """The node as the shell block starts it, with a small random model; the planner as the Python block has it."""
    (shell,) = (block for block in blocks('sh') if 'mirage_node' in block)
    (python,) = blocks('python')
    folder = save_small_model(tmp_path / 'model')
    command = (
        shell.strip().replace('mirage_node ', 'exec mirage_node ')
        + f" -p model.folder:='{folder}'"
    )
    node = NodeProcess(
        tmp_path / 'node.log',
        program=['bash', '-c', f'cd {ROOT} && {command}'],
        environment={'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'},
    )
    names = {kind: name for kind, name in re.findall(r'-r (\w+):=(\S+)', shell)}
    for kind, message in (('image', Image), ('camera_info', CameraInfo), ('depth', Image)):
        client.publishers.pop(kind)
        client.publisher(names[kind], message)
    client.connect()
    planner = subprocess.Popen(
        [sys.executable, '-c', python], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    image, camera_info, depth = seed_messages()
    while planner.poll() is None and not client.chunks:
        client.send(names['image'], image)
        client.send(names['camera_info'], camera_info)
        client.send(names['depth'], depth)
        client.spin(0.1)
        assert 'refused' not in node.says(), node.says()
    said, _ = planner.communicate(timeout=60)
    assert planner.returncode == 0, said
    assert re.fullmatch(r'(chunk \d of 4: 8 frames, observed \d+%\n){4}', said), said
    node.stop()


@pytest.mark.parametrize(
    'target', sorted(set(re.findall(r'(?:`|^)make ([\w-]+)', README, flags=re.M)))
)
def test_make_targets_exist(target):
    subprocess.run(['make', '-n', target], cwd=ROOT, check=True, capture_output=True)


def test_files_that_are_named_exist():
    (tree,) = blocks('')
    package = ''
    for line in tree.splitlines():
        indent, names = re.match(r'( *)((?:[\w./]+/? )*[\w./]+/?)  ', line + '  ').groups()
        for name in names.split():
            if not indent:
                package = name if name.startswith('mirage_') else ''
            assert (ROOT / (package if indent else '') / name).exists(), line
    for name in re.findall(r'\]\(([\w./]+)\)', README):
        assert (ROOT / name).exists(), name
