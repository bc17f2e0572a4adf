from __future__ import annotations

import json
import sys

import pytest

from mirage_model.data import record


def test_clips_of_another_length_do_not_share_a_folder(tmp_path, monkeypatch, capsys):
    def command(*words: str) -> None:
        given = ['record', '--split', 'train', '--clips', '0', '--out', str(tmp_path), *words]
        monkeypatch.setattr(sys, 'argv', given)
        record.main()

    command('--frames', '33')
    command('--frames', '33')
    assert json.loads((tmp_path / 'config.json').read_text())['frames'] == 33
    with pytest.raises(SystemExit):
        command('--frames', '65')
    assert 'began with another frames' in capsys.readouterr().err
