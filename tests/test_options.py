"""A wrong value of an option is named, with the value and what is allowed."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from mirage_model import cli
from mirage_model.cli import COMMANDS, main
from mirage_model.options import Allowed, Checked

TOPICS = ['--image', '/a', '--camera-info', '/b', '--pose', '/c']
REPLAY = ['replay', 'HERE', *TOPICS]
FREE = {'seeds', 'observe', 'seed'}
"""Numbers that may have any value, or that a configuration checks itself."""


def parts(cls: type) -> list[type]:
    """A configuration and those inside of it."""
    found = [cls]
    for hint in get_type_hints(cls).values():
        if is_dataclass(hint):
            found += parts(hint)
    return found


CONFIGS = list(
    {
        part: None
        for command in COMMANDS.values()
        if not command.config.startswith('mirage_ros')
        for part in parts(cli._load(command.config))
    }
)


def plain(hint: Any) -> list[Any]:
    """The types that an option is made of, with their markers."""
    if get_origin(hint) is Annotated:
        inner = plain(hint.__origin__)
        return [(kind, [*markers, *hint.__metadata__]) for kind, markers in inner]
    if get_origin(hint) is Literal or not get_args(hint):
        return [(hint, [])]
    return [entry for each in get_args(hint) for entry in plain(each)]


@pytest.mark.parametrize('cls', CONFIGS, ids=lambda cls: cls.__name__)
def test_every_number_states_what_is_allowed(cls):
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for kind, markers in plain(hint):
            if kind in (int, float) and name not in FREE:
                assert any(isinstance(m, Allowed) for m in markers), f'{cls.__name__}.{name}'


WRONG: dict[Any, tuple[Any, ...]] = {
    int: (-1, 0),
    float: (math.nan, math.inf, -1.0, 0.0, 0.5, 2.0),
    str: ('', ' '),
}


@pytest.mark.parametrize('cls', CONFIGS, ids=lambda cls: cls.__name__)
def test_wrong_values_of_every_option_are_named(cls):
    """A field rejects those values, wrong for some option, that it does not allow."""
    needed = {int: 1, float: 1.0, str: 'x', Path: Path('x')}
    hints = get_type_hints(cls, include_extras=True)
    given = {}
    for field in fields(cls):
        kind = plain(hints[field.name])[0][0]
        if field.default is MISSING and not is_dataclass(kind):
            value = get_args(kind)[0] if get_args(kind) else needed[kind]
            hint = getattr(hints[field.name], '__origin__', None)
            given[field.name] = (value,) if tuple in (hint, get_origin(hint)) else value
    for name, hint in hints.items():
        if get_origin(hint) is not Annotated or hint.__origin__ not in WRONG:
            continue
        for marker in hint.__metadata__:
            if not isinstance(marker, Allowed):
                continue
            for value in WRONG[hint.__origin__]:
                if not marker.test(value):
                    assert issubclass(cls, Checked)
                    with pytest.raises(ValueError) as error:
                        cls(**{**given, name: value})
                    assert str(error.value) == f'{name}: {value!r}, {marker.text}'


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and words of a call, without the frame that the options' parser draws."""
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    text = capsys.readouterr().err
    return status, ' '.join(text.replace('│', ' ').split())


@pytest.mark.parametrize(
    ('words', 'status', 'text'),
    [
        (
            [*REPLAY, '--base-from-camera', '1', '2', '3'],
            2,
            'base_from_camera: 1.0 2.0 3.0, must have 7 numbers: x y z [m], quaternion x y z w',
        ),
        (
            [*REPLAY, '--tolerance', '-1'],
            2,
            'tolerance: -1.0, must be 0 or more',
        ),
        ([*REPLAY, '--pose-gap', '0'], 2, 'pose_gap: 0.0, must be positive'),
        ([*REPLAY, '--horizon', 'nan'], 2, 'horizon: nan, must be positive'),
        ([*REPLAY, '--steps', '-3'], 2, 'steps: -3, must be 0 or more'),
        ([*REPLAY, '--observe', '-1'], 2, 'observe: -1.0, must be 0 or more'),
        ([*REPLAY, '--seeds', '1', '1'], 2, 'seeds: [1, 1], must be different'),
        (
            [*REPLAY, '--world-frame', ''],
            2,
            "world_frame: '', must not be empty",
        ),
        (
            [*REPLAY, '--accept', 'everything'],
            2,
            'accept: everything, must be among baseline, body_frame',
        ),
        (
            ['replay', 'HERE/none', *TOPICS],
            1,
            'bag: HERE/none does not exist, must be a file or folder',
        ),
        (
            [*REPLAY, '--model-folder', 'HERE/none'],
            1,
            'model_folder: HERE/none does not exist, must be a folder',
        ),
        (
            [*REPLAY, '--model-folder', 'HERE/file'],
            1,
            'model_folder: HERE/file is a file, must be a folder',
        ),
        ([*REPLAY, '--out', 'HERE/file'], 1, 'out: HERE/file is a file'),
        (['record', '--split', 'test', '--out', 'HERE', '--clips', '0'], 2, 'clips: 0, must be'),
        (['record', '--split', 'best', '--out', 'HERE'], 2, "invalid choice 'best'"),
        (
            ['prepare', '--out', 'HERE/out', '--clips', 'HERE/file'],
            1,
            'clips: HERE/file is a file, must be a folder',
        ),
        (
            ['prepare', '--out', 'HERE/out', '--bag', 'HERE/none'],
            1,
            'bag: HERE/none does not exist',
        ),
        (
            ['prepare', '--out', 'HERE/out', '--splits', 'HERE'],
            1,
            'splits: HERE is a folder, must be a file',
        ),
        (['serve', '--lease', '0'], 2, 'lease: 0.0, must be positive'),
        (['serve', '--key', 'HERE/none'], 1, 'key: HERE/none does not exist, must be a file'),
        (['bench', 'network-soak', '--loss', '7'], 2, 'loss: 7.0, must be a share in 0..1'),
        (['report', 'compare', 'HERE', 'HERE/none'], 1, 'folders: HERE/none does not exist'),
        (
            ['evaluate', 'tiny', '--office', 'HERE/' + 300 * 'x'],
            1,
            'File name too long',
        ),
    ],
    ids=lambda value: '',
)
def test_calls_with_wrong_values(words, status, text, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    here = str(tmp_path)
    ended, told = said([word.replace('HERE', here) for word in words], capsys)
    assert ended == status and text.replace('HERE', here).replace(' ', '') in told.replace(' ', '')


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        ({'image': 5}, 'image: 5, must be text'),
        ({'image': True}, 'image: True, must be text'),
        ({'image': None}, 'image: None, must be text'),
        ({'image': ['/a', '/b']}, "image: ['/a', '/b'], must be text"),
        ({'image': {'topic': '/a'}}, 'image.topic: not among'),
        ({'out': 3}, 'out: 3, must be text'),
        ({'allow_unscaled_depth': 1}, 'allow_unscaled_depth: 1, must be true or false'),
        ({'allow_unscaled_depth': 'no'}, "allow_unscaled_depth: 'no', must be true or false"),
        ({'horizon': True}, 'horizon: True, must be a number'),
        ({'horizon': [1, 2]}, 'horizon: [1, 2], must be a number'),
        ({'horizon': None}, 'horizon: None, must be a number'),
        ({'seeds': [1, None]}, 'seeds: [1, None], must be a number'),
        ({'devices': [0]}, 'devices: [0], must be text'),
        ({'accept': 7}, 'accept: 7, must be text'),
        ({'base_from_camera': [0, 0, 0]}, 'base_from_camera: 0.0 0.0 0.0, must have 7 numbers'),
        ({'tolerance': 'soon'}, '--tolerance'),
    ],
)
def test_files_with_values_of_another_type(values, text, tmp_path, capsys):
    path = tmp_path / 'options.yaml'
    path.write_text(yaml.safe_dump(values))
    ended, told = said(['replay', str(tmp_path), '--config', str(path), *TOPICS], capsys)
    assert ended in (1, 2) and text.replace(' ', '') in told.replace(' ', '')


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('none.yaml', 'none.yaml: cannot be read as YAML: '),
        ('', ': cannot be read as YAML: '),
        ('broken.yaml', 'broken.yaml: cannot be read as YAML: '),
        ('binary.yaml', 'binary.yaml: cannot be read as YAML: '),
        ('list.yaml', 'list.yaml: is list, must be names with values'),
    ],
)
def test_files_that_are_no_options(name, text, tmp_path, capsys):
    (tmp_path / 'broken.yaml').write_text('image: [')
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00image')
    (tmp_path / 'list.yaml').write_text('- a')
    words = ['replay', str(tmp_path), '--config', str(tmp_path / name), *TOPICS]
    ended, told = said(words, capsys)
    assert ended == 1 and text in told


def test_repeated_options_may_stand_in_a_file(tmp_path):
    path = tmp_path / 'options.yaml'
    path.write_text('bag: [a, b]\nvipe: [[v, w], [x, y]]\nout: o\n')
    config = cli.parse(
        cli._load(COMMANDS['prepare'].config), ['--config', str(path)], prog='mirage prepare'
    )
    assert config.bag == (Path('a'), Path('b'))
    assert config.vipe == ((Path('v'), Path('w')), (Path('x'), Path('y')))
