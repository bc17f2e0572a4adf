"""The video shows its frames; the sheet has its rows."""

from __future__ import annotations

import cv2
import numpy as np

from mirage_model.evaluation.replay.video import mask_in_colour, mp4
from mirage_model.metrics import psnr
from mirage_ros.tools import video
from mirage_ros.tools.demo_client import fitted, mean_psnr


def rows(n: int = 6, height: int = 48, width: int = 80) -> video.Rows:
    ramp = np.linspace(0, 200, width, dtype=np.uint8)[None, None, :, None]
    moving = (
        np.broadcast_to(ramp, (n, height, width, 3))
        + np.arange(n, dtype=np.uint8)[:, None, None, None] * 8
    )
    masks = np.zeros((n, height, width), np.uint8)
    masks[:, :, 40:] = 255
    return {
        'truth': moving,
        video.GENERATED: moving[:, ::-1].copy(),
        'what the memory showed': moving // 2,
        'warp and inpaint': moving[:, :, ::-1].copy(),
        'mask': mask_in_colour(masks),
    }


def test_video_decodes_to_its_frames(tmp_path):
    """The video has the codec that browsers play."""
    frames = video.video_frames(rows(), ahead=np.arange(1, 7) / 8)
    (tmp_path / 'video.mp4').write_bytes(mp4(frames, frame_rate=8.0))
    played = cv2.VideoCapture(str(tmp_path / 'video.mp4'))
    assert played.get(cv2.CAP_PROP_FPS) == 8.0
    assert int(played.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, 'little') == b'VP90'
    decoded = []
    while True:
        more, frame = played.read()
        if not more:
            break
        decoded.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    assert min(psnr(a / 255.0, b / 255.0) for a, b in zip(decoded, frames)) > 25


def test_sheet_has_a_row_for_each_title(tmp_path):
    sheet = video.contact_sheet(rows(), ahead=np.arange(1, 7) / 8, columns=3)
    video.write_png(tmp_path / 'sheet.png', sheet)
    back = cv2.cvtColor(cv2.imread(str(tmp_path / 'sheet.png')), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(back, sheet)
    for frames in rows().values():
        for picture in (frames[0], frames[-1]):
            match = cv2.matchTemplate(sheet, picture, cv2.TM_SQDIFF)
            y, x = np.unravel_index(match.argmin(), match.shape)
            np.testing.assert_array_equal(sheet[y : y + 48, x : x + 80], picture)


def test_generated_frames_alone_are_marked():
    """Each generated frame has an edge of one colour, on the sheet and in the video."""
    frames = {title: np.full_like(frame, 9) for title, frame in rows().items()}
    times = np.arange(1, 7) / 8
    sheet = video.contact_sheet(frames, ahead=times, columns=3)
    (film, *_) = video.video_frames(frames, ahead=times)
    for picture, edge in ((sheet, 4), (film, 4)):
        marked = (picture == video.MARK).all(axis=2)
        count, _, boxes, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8))
        edges = boxes[(boxes[:, cv2.CC_STAT_HEIGHT] > 40) & (np.arange(count) > 0)]
        assert len(edges) == 1, boxes
        x, y, width, height, area = edges[0]
        inner = picture[y + edge : y + height - edge, x + edge : x + width - edge]
        assert area < width * height / 2 and (inner == 9).any()


def test_true_frames_are_cropped_like_the_seed():
    frames = np.zeros((2, 96, 160, 3), np.uint8)
    frames[:, :, 80:] = 255
    small = fitted(frames, 32, 48)
    assert small.shape == (2, 32, 48, 3)
    assert (small[:, :, :24] == 0).all() and (small[:, :, 24:] == 255).all()
    assert fitted(frames, 96, 160) is frames


def test_mean_psnr_of_a_known_error():
    a = np.zeros((1, 4, 4, 3), np.uint8)
    np.testing.assert_allclose(mean_psnr(a, a + np.uint8(255)), 0.0)
    np.testing.assert_allclose(mean_psnr(a, a + np.uint8(1)), 20 * np.log10(255))
