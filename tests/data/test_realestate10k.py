from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mirage_model.data.realestate10k import RealEstate10K, read_sequence
from mirage_model.data.sources import Layout

ADDRESS = 'https://www.youtube.com/watch?v=abc-_123'
LINE = '{stamp} 0.5 0.8 0.5 0.5 0 0 0 -1 0 2 1 0 0 3 0 0 1 {z}'
"""Camera rotated by 90 degrees about its axis: camera x is world -y, camera y is world x."""


def write(folder: Path, name: str, lines: list[str]) -> Path:
    (folder / 'text').mkdir(exist_ok=True)
    path = folder / 'text' / f'{name}.txt'
    path.write_text('\n'.join(lines) + '\n')
    return path


def lines_of(stamps: list[int]) -> list[str]:
    return [ADDRESS, *(LINE.format(stamp=stamp, z=4 + i) for i, stamp in enumerate(stamps))]


def write_frames(folder: Path, name: str, stamps: list[int], *, size=(36, 64)) -> None:
    (folder / 'frames' / name).mkdir(parents=True, exist_ok=True)
    for i, stamp in enumerate(stamps):
        picture = np.full((*size, 3), (10, 20, 30 + i), np.uint8)  # blue, green, red
        cv2.imwrite(str(folder / 'frames' / name / f'{stamp}.png'), picture)


def test_cameras_equal_a_hand_computed_line(tmp_path):
    sequence = read_sequence(write(tmp_path, 'seq', lines_of([41708333, 41750000])))
    assert sequence.scene == 'abc-_123' and sequence.stamps.tolist() == [41708333, 41750000]
    cameras = sequence.cameras([0, 1], 360, 640)
    # 0.5 of 640 and 0.8 of 360; the image's centre, with pixel centres at whole numbers
    K = [[320.0, 0.0, 319.5], [0.0, 288.0, 179.5], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(cameras.K[0], torch.tensor(K))
    # p_camera = R p_world + t with R = [0 -1 0; 1 0 0; 0 0 1], t = (2, 3, 4): the centre is -R' t
    expected = [[0.0, 1.0, 0.0, -3.0], [-1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, -4.0], [0, 0, 0, 1]]
    torch.testing.assert_close(cameras.world_from_camera[0], torch.tensor(expected))
    assert float(cameras.world_from_camera[1, 2, 3]) == -5.0
    torch.testing.assert_close(cameras.times, torch.tensor([41.708333, 41.75]).double())


def test_clips_have_the_requested_rate_and_size(tmp_path):
    """A second at 30 Hz becomes nine frames at 8 Hz, cropped to the central square."""
    stamps = [round(1e6 + i * 1e6 / 30) for i in range(31)]
    write(tmp_path, 'seq', lines_of(stamps))
    write_frames(tmp_path, 'seq', stamps)
    layout = Layout(height=18, width=18, rate=8.0, least=9, frames=9)
    source = RealEstate10K(text=tmp_path / 'text', frames=tmp_path / 'frames', layout=layout)
    listing = source.listing()
    assert not listing.left_out and len(listing.parts) == 1
    (part,) = listing.parts
    assert (part.name, part.scene) == ('seq-00000', 'abc-_123')
    nearest = [min(range(31), key=lambda i: abs(stamps[i] - 1e6 - k * 125e3)) for k in range(9)]
    assert list(part.rows) == nearest
    clip = source.load(part)
    assert clip.frames.shape == (9, 18, 18, 3)
    assert clip.frames[:, 9, 9].tolist() == [[30 + i, 20, 10] for i in nearest]
    # 36x64 is halved to 18x32 and loses 7 columns at either side
    K = [[16.0, 0.0, 15.5 - 7], [0.0, 14.4, 8.5], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(clip.cameras.K[0], torch.tensor(K))
    assert clip.depth.isnan().all() and not clip.labelled and not clip.metric


def test_missing_and_unusable_frames_are_reported(tmp_path):
    stamps = [i * 125_000 for i in range(12)]
    write(tmp_path, 'holes', lines_of(stamps))
    write_frames(tmp_path, 'holes', stamps[:4] + stamps[5:])
    write(tmp_path, 'nothing', lines_of(stamps))
    write(tmp_path, 'torn', [*lines_of(stamps[:2]), '250000 0.5'])
    layout = Layout(height=18, width=32, rate=8.0, least=5, frames=16)
    source = RealEstate10K(text=tmp_path / 'text', frames=tmp_path / 'frames', layout=layout)
    listing = source.listing()
    assert [part.rows for part in listing.parts] == [tuple(range(5, 12))]
    reasons = {name: reason for name, _, reason in listing.left_out}
    assert '4 frames without a gap' in reasons['holes-00000']
    assert '1 of 12 frames are not in' in reasons['holes (frames)']
    assert '12 of 12 frames are not in' in reasons['nothing (frames)']
    assert 'torn.txt:4: 2 columns, 19 are needed' in reasons['torn']
    (tmp_path / 'frames' / 'holes' / f'{stamps[6]}.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='750000.png: cannot be read as an image'):
        source.load(listing.parts[0])
    write_frames(tmp_path, 'holes', stamps[6:7], size=(18, 32))
    with pytest.raises(ValueError, match='sizes are .* must be equal'):
        source.load(listing.parts[0])


GOOD = LINE.format(stamp=0, z=4)


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ([ADDRESS], 'at least one frame'),
        ([GOOD, GOOD], 'seq.txt:1: .* is not a URL'),
        ([ADDRESS, GOOD, GOOD], 'seq.txt:3: stamp is 0, must be after 0'),
        ([ADDRESS, GOOD.replace('0.8', 'x')], 'seq.txt:2: not all numbers'),
        ([ADDRESS, GOOD.replace('0.8', '-0.8')], 'seq.txt:2: fx and fy must be positive'),
        ([ADDRESS, GOOD.replace(' 4', ' nan')], 'seq.txt:2: fx and fy must be positive and all'),
        (
            [ADDRESS, GOOD.replace('0.5 0 0 ', '0.5 0.1 0 ')],
            'seq.txt:2: distortion is .0.1, 0.0., must be zero',
        ),
        ([ADDRESS, GOOD.replace('-1', '-2')], 'seq.txt: camera 0: transform is not rigid'),
    ],
)
def test_invalid_text_is_rejected_with_its_line_number(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_sequence(write(tmp_path, 'seq', lines))


def test_wrong_folders_are_rejected(tmp_path):
    (tmp_path / 'text').mkdir()
    source = RealEstate10K(text=tmp_path / 'text', frames=tmp_path / 'f', layout=Layout())
    with pytest.raises(ValueError, match='no text files'):
        source.listing()
    write(tmp_path, 'seq', lines_of([0]))
    with pytest.raises(ValueError, match='the folder of frames is missing'):
        source.listing()
