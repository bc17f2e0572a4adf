"""The commands of the README run as printed, and the pages name what exists."""

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
CONTRIBUTING = (ROOT / 'CONTRIBUTING.md').read_text()
PAGES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'docs').rglob('*.md'))


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r'^```(\w*)\n(.*?)^```', text, flags=re.S | re.M)
    return [content for name, content in fenced if name == language]


def test_quick_start(client, tmp_path):
    """The node starts as in the first shell block, the planner as in the second."""
    shells = blocks(README, 'sh')
    (shell,) = (block for block in shells if '-r image:=' in block)
    (planner_command,) = (block for block in shells if 'examples/plan_ahead.py' in block)
    folder = save_small_model(tmp_path / 'model')
    command = (
        shell.strip().replace('mirage_node ', 'exec mirage_node ')
        + f" -p model.folder:='{folder}'"
    )
    environment = {'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    node = NodeProcess(
        tmp_path / 'node.log',
        program=['bash', '-c', f'cd {ROOT} && {command}'],
        environment=environment,
    )
    names = {kind: name for kind, name in re.findall(r'-r (\w+):=(\S+)', shell)}
    for kind, message in (('image', Image), ('camera_info', CameraInfo), ('depth', Image)):
        client.publishers.pop(kind)
        client.publisher(names[kind], message)
    client.connect()

    def send_seed() -> None:
        for kind, message in zip(('image', 'camera_info', 'depth'), seed_messages()):
            client.send(names[kind], message)
        client.spin(0.1)

    send_seed()
    planner = subprocess.Popen(
        planner_command.split(),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while planner.poll() is None:
        send_seed()
        assert 'rejected' not in node.says(), node.says()
    printed = planner.communicate(timeout=60)[0]
    assert planner.returncode == 0, printed
    assert re.fullmatch(r'(chunk \d of 4: 8 frames, observed \d+%\n){4}', printed), printed
    node.stop()


def test_readme_is_short():
    assert len(README.splitlines()) < 120


@pytest.mark.parametrize(
    'target', sorted(set(re.findall(r'(?:`|^)make ([\w-]+)', README, flags=re.M)))
)
def test_make_targets_exist(target):
    subprocess.run(['make', '-n', target], cwd=ROOT, check=True, capture_output=True)


def test_layout_names_all_that_exists():
    (tree,) = blocks(CONTRIBUTING, '')
    package = ''
    for line in tree.splitlines():
        indent, name = re.match(r'( *)([\w./]+)', line).groups()
        if not indent:
            package = name if name.startswith('mirage_') else ''
        assert (ROOT / (package if indent else '') / name).exists(), line
    for path in (ROOT / 'mirage_model').glob('[a-z]*'):
        assert path.name in tree, path


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', *PAGES])
def test_links_lead_to_files(page):
    path = ROOT / page
    for name in re.findall(r'\]\((?!https?:)([^)#]+)', path.read_text()):
        assert (path.parent / name).exists(), name
