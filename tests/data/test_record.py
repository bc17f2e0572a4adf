from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from mirage_model.cli import main
from mirage_model.data.config import RecordConfig
from mirage_model.data.record import open_world, record_trajectory


def test_a_folder_holds_clips_of_one_length(tmp_path, capsys):
    def record(frames: int) -> int:
        words = ['--split', 'train', '--clips', '1', '--out', str(tmp_path)]
        return main(['record', *words, '--frames', str(frames)])

    assert record(33) == record(33) == 0
    assert json.loads((tmp_path / 'config.json').read_text())['frames'] == 33
    assert record(65) == 1
    assert 'began with another frames' in capsys.readouterr().err


@pytest.mark.slow
def test_photographs_of_the_own_split_cover_houses(tmp_path):
    for index in range(20):
        picture = np.full((150, 200, 3), (200, 0, 200), np.uint8)
        cv2.imwrite(str(tmp_path / f'picture{index}.png'), picture)
    config = RecordConfig(photographs=tmp_path)
    clip = record_trajectory('room-0003', 'turn', frames=1, seed=1, name='a', config=config)
    red, green, blue = clip.frames.float().mean(dim=(0, 1, 2))
    assert min(red, blue) > 1.3 * green
    with pytest.raises(ValueError, match='photographs cover houses alone'):
        open_world('E1M1', seed=0, config=config)
    with pytest.raises(ValueError, match='no pictures'):
        open_world('room-0003', seed=0, config=RecordConfig(photographs=tmp_path / 'none'))
