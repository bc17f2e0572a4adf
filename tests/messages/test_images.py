"""Images of messages: sizes without decoding, compressed colours and depth, and what is
rejected.
"""

from __future__ import annotations

from array import array
from types import SimpleNamespace as Message

import cv2
import numpy as np
import pytest

from mirage_model.messages.images import depth_from_image, image_size, rgb_from_image


def raw(
    encoding: str, height: int, width: int, step: int, *, length: int | None = None
) -> Message:
    return Message(
        encoding=encoding,
        height=height,
        width=width,
        step=step,
        is_bigendian=0,
        data=array('B', bytes(step * height if length is None else length)),
    )


def compressed(picture: np.ndarray, ending: str, form: str, header: bytes = b'') -> Message:
    _, data = cv2.imencode(ending, picture)
    return Message(format=form, data=array('B', header + data.tobytes()))


def test_compressed_colour_and_depth():
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    png = compressed(bgr, '.png', 'rgb8; png compressed bgr8')
    assert image_size(png, 'image', max_pixels=35) == (5, 7)
    np.testing.assert_array_equal(rgb_from_image(png), bgr[..., ::-1])
    smooth = np.full((16, 16, 3), (10, 100, 200), np.uint8)
    jpeg = rgb_from_image(compressed(smooth, '.jpg', 'jpeg'))
    assert np.abs(jpeg.astype(int) - smooth[..., ::-1]).max() <= 4
    millimetres = rng.integers(0, 65536, (5, 7)).astype(np.uint16)
    depth = compressed(millimetres, '.png', '16UC1; compressedDepth png', bytes(12))
    assert image_size(depth, 'depth', max_pixels=35) == (5, 7)
    np.testing.assert_allclose(depth_from_image(depth), millimetres / 1000, atol=1e-4)


@pytest.mark.parametrize('png', [' png', ''])
def test_compressed_depth_in_metres(png):
    """Depth is quantised as the transport does by default: to a hundredth of a metre, up to
    ten."""
    metres = np.float32([[0.5, 1.25, 3.0], [9.9, 20.0, np.nan]])
    a = 100.0 * (100.0 + 1.0)
    b = 1.0 - a / 10.0
    with np.errstate(invalid='ignore'):
        stored = np.where(metres < 10.0, a / metres + b, 0).astype(np.uint16)
    header = np.int32(1).tobytes() + np.float32([a, b]).tobytes()
    message = compressed(stored, '.png', f'32FC1; compressedDepth{png}', header)
    assert image_size(message, 'depth', max_pixels=6) == (2, 3)
    found = depth_from_image(message)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[metres < 10], metres[metres < 10], rtol=0.01)
    assert np.isnan(found[1, 1:]).all()


@pytest.mark.parametrize(
    ('message', 'kind', 'what'),
    [
        (Message(format='jpeg', data=array('B')), 'image', "not 'jpeg' data"),
        (Message(format='jpeg', data=array('B', bytes(99))), 'image', "not 'jpeg' data"),
        (compressed(np.zeros((9, 9, 3), np.uint8), '.png', 'png'), 'image', '9x9 is more than'),
        (compressed(np.zeros((2, 2), np.uint16), '.png', 'png'), 'depth', "'png' is not one of "),
        (compressed(np.zeros((2, 2), np.uint8), '.tiff', 'tiff'), 'image', "not 'tiff' data"),
        (raw('rgb8', 9, 9, 27), 'image', '9x9 is more than limits.max_pixels, 80'),
        (raw('rgb8', 2, 3, 8), 'image', '16 bytes in rows of 8 are not 2x3 rgb8'),
        (raw('rgb8', 2, 3, 9, length=17), 'image', '17 bytes in rows of 9 are not 2x3 rgb8'),
        (raw('rgb8', 0, 3, 9), 'image', 'image: empty, 0x3'),
        (raw('16UC1', 2, 3, 6), 'image', "image: encoding '16UC1' is not one of"),
        (raw('rgb8', 2, 3, 9), 'depth', "depth: encoding 'rgb8' is not one of"),
    ],
)
def test_rejected_before_it_is_decoded(message, kind, what):
    with pytest.raises(ValueError, match=what):
        image_size(message, kind, max_pixels=80)


@pytest.mark.parametrize('rows', [4, 6])
def test_height_of_nv12_by_the_length_of_its_data(rows):
    """The height of the message is that of the picture, or that of both planes."""
    assert image_size(raw('nv12', rows, 6, 8, length=48), 'image') == (4, 6)


def test_odd_width_of_yuv_is_rejected():
    with pytest.raises(ValueError, match='cannot be converted'):
        rgb_from_image(raw('yuv422', 1, 3, 6))


def test_compressed_data_that_is_not_an_image():
    with pytest.raises(ValueError, match="not 'jpeg' data"):
        rgb_from_image(Message(format='jpeg', data=array('B', [1, 2, 3])))
