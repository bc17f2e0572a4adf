"""A bag that is replayed through the running node gives the metrics of the file."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'evaluation'))
from drives import OPTIONS, copy_bag, record, wall_bag  # noqa: E402
from models import save_small_model  # noqa: E402

from mirage_model.cli import main  # noqa: E402


@pytest.fixture(scope='module')
def recorded(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp('replay'))


def words(recorded: Path, out: Path, *more: str) -> list[str]:
    options = {**OPTIONS, 'model_folder': str(recorded / 'model')}
    given = [f'--{name.replace("_", "-")}={value}' for name, value in options.items()]
    return [str(recorded / 'drive'), '--out', str(out), *given, *more]


def through_the_node(recorded: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    line = [sys.executable, '-m', 'mirage_ros.tools.replay', *words(recorded, out, *more)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_replay_through_node_equals_the_file(tmp_path, capsys):
    """At 30 Hz the stamps of the images hold nanoseconds, those of other messages microseconds."""
    rate = 30.0

    def later(topic, message):
        if topic == '/camera/image':
            stamp = message.header.stamp
            stamp = replace(stamp, nanosec=stamp.nanosec + 333)
            message = replace(message, header=replace(message.header, stamp=stamp))
        return message

    source = wall_bag(tmp_path / 'exact', 42, rate)
    copy_bag(source, tmp_path / 'drive', later)
    settings = save_small_model(tmp_path / 'model') / 'model.json'
    settings.write_text(json.dumps({**json.loads(settings.read_text()), 'frame_rate': rate}))
    more = ('--horizon', '0.6', '--stride', '0.6', '--observe-every', '0.2')
    assert main(['replay', *words(tmp_path, tmp_path / 'file', *more)]) == 0
    run = through_the_node(tmp_path, tmp_path / 'node', *more)
    assert run.returncode == 0, run.stdout + run.stderr
    assert '2 results' in run.stdout
    compare = ['report', 'compare', str(tmp_path / 'file'), str(tmp_path / 'node')]
    assert main(compare) == 0
    assert 'equal: 2 segments' in capsys.readouterr().out
    about = json.loads((tmp_path / 'node' / 'config.json').read_text())
    assert about['way'] == 'through the node'
    (tmp_path / 'node' / 'segments' / '00001-0.safetensors').unlink()
    assert main(compare) == 1
    assert '00001-0.safetensors is in one of them alone' in capsys.readouterr().err


def test_free_running_counts_dropped_plans(recorded, tmp_path):
    """Two segments start in each second of the bag, faster than any node answers."""
    run = through_the_node(recorded, tmp_path, '--free-running', '--pace=8', '--stride=0.5')
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / 'free_running.json').read_text())
    assert found['images sent'] == 33
    assert found['plans sent'] == found['plans answered'] + found['plans dropped'] == 7
    assert found['plans answered'] >= 1
    assert 1 <= found['node']['images observed'] <= 33
