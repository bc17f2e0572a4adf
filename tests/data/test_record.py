from __future__ import annotations

import json

from mirage_model.cli import main


def test_a_folder_holds_clips_of_one_length(tmp_path, capsys):
    def record(frames: int) -> int:
        words = ['--split', 'train', '--clips', '0', '--out', str(tmp_path)]
        return main(['record', *words, '--frames', str(frames)])

    assert record(33) == record(33) == 0
    assert json.loads((tmp_path / 'config.json').read_text())['frames'] == 33
    assert record(65) == 1
    assert 'began with another frames' in capsys.readouterr().err
