"""ROS executables end with one sentence: status 1 for an input, 2 for a wrong call."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys

import pytest

from mirage_ros import __main__ as node
from mirage_ros.tools import demo, replay

BAG = ['bag', '--image=/a', '--camera-info=/b', '--pose=/c']


def viewer_main() -> int:
    from mirage_ros.tools import viewer

    return viewer.main()


MAINS = {
    'mirage_node': node.main,
    'mirage_demo': demo.main,
    'mirage_replay_node': replay.main,
    'mirage_viewer': viewer_main,
}


def ended(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Call an executable's main in this process; return its exit status."""
    monkeypatch.setattr(sys, 'argv', [name, *words])
    monkeypatch.setattr('signal.signal', lambda *_: None)  # pytest keeps its own
    try:
        return MAINS[name]()
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize('name', MAINS)
@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['--nonsense'], '--nonsense'),
        (['--ros-args', '-p', 'tf.wait'], "Couldn't parse parameter override rule: '-p tf.wait'"),
        (['--ros-args', '-r', 'image=/a'], "Couldn't parse remap rule: '-r image=/a'"),
        (['--ros-args', '--nonsense'], "['--nonsense']: not among the ROS arguments"),
    ],
    ids=['option', 'parameter', 'remapping', 'ROS argument'],
)
def test_wrong_calls_end_with_2(name, words, text, monkeypatch, capsys):
    given = BAG if name == 'mirage_replay_node' else []
    assert ended(name, [*given, *words], monkeypatch) == 2
    said = capsys.readouterr().err
    assert name in said and text in said.replace('\n', ' ') and '/project/src' not in said


@pytest.mark.parametrize('name', MAINS)
def test_missing_parameter_file_ends_with_1(name, monkeypatch, capsys):
    assert ended(name, ['--ros-args', '--params-file', '/nowhere.yaml'], monkeypatch) == 1
    assert "Couldn't parse params file: '--params-file /nowhere.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'words'), [('mirage_demo', []), ('mirage_replay_node', BAG)], ids=['demo', 'replay']
)
def test_output_in_a_file_is_named_before_the_node_starts(
    name, words, tmp_path, monkeypatch, capsys
):
    (tmp_path / 'file').write_text('')
    out = tmp_path / 'file' / 'out'
    assert ended(name, [*words, '--out', str(out)], monkeypatch) == 1
    assert capsys.readouterr().err == (
        f'{name}: out: {out} lies below {tmp_path / "file"}, which is a file, name a folder\n'
    )


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['-p', 'model.device:=cuda:99'], "device: 'cuda:99' cannot be used"),
        (['-p', 'path.speed:=fast'], "'path.speed'"),
        (['-p', 'limits.queue_size:=0'], 'limits.queue_size'),
        (['-p', "frames.world:=''"], 'frames.world: must not be empty'),
    ],
    ids=['cuda', 'type', 'range', 'empty'],
)
def test_node_ends_with_1_for_a_parameter(words, text):
    command = [sys.executable, '-m', 'mirage_ros', '--ros-args', *words]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 1, done.stdout
    assert text in done.stdout and 'Traceback' not in done.stdout, done.stdout
