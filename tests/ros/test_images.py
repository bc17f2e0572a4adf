"""Images as cameras send them: every encoding, compressed ones, and what is refused before it is decoded."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image

from mirage_ros.images import COLOUR_BYTES, depth_from_image, rgb_from_image, size_of

GREY = 90


@pytest.mark.parametrize('encoding', sorted(COLOUR_BYTES))
def test_a_grey_picture_is_grey_in_every_encoding(encoding):
    """Grey is the same in all of them but for where alpha lies, and 128 is no colour in YUV."""
    height, width, depth = 4, 6, COLOUR_BYTES[encoding]
    if encoding.startswith('yuv'):
        pair = [128, GREY] if encoding == 'yuv422' else [GREY, 128]
        data = np.tile(np.array(pair, np.uint8), height * width)
    else:
        kind = np.uint16 if '16' in encoding else np.uint8
        grey = GREY * 257 if '16' in encoding else GREY
        data = np.full(height * width * depth // np.dtype(kind).itemsize, grey, kind)
    message = Image(
        height=height,
        width=width,
        encoding=encoding,
        step=width * depth,
        data=array('B', data.tobytes()),
    )
    rgb = rgb_from_image(message)
    assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - GREY).max() <= 16  # YUV of 16 to 235


COLOUR = np.uint8([200, 100, 50])


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_colours_of_a_mosaic(pattern):
    squares = COLOUR[['rgb'.index(letter) for letter in pattern]].reshape(2, 2)
    mosaic = np.tile(squares, (4, 4))
    message = Image(
        height=8, width=8, step=8, encoding=f'bayer_{pattern}8', data=array('B', mosaic.tobytes())
    )
    assert (rgb_from_image(message)[2:-2, 2:-2] == COLOUR).all()


@pytest.mark.parametrize('encoding', ['rgb16', 'bgr16', 'rgba16', 'bgra16'])
def test_colours_of_sixteen_bits(encoding):
    pixel = [int(COLOUR['rgb'.index(letter)]) * 257 for letter in encoding[:3]]
    stored = np.array(pixel + [65535] * ('a' in encoding), np.uint16)
    data = array('B', stored.tobytes())
    message = Image(height=1, width=1, encoding=encoding, step=stored.nbytes, data=data)
    np.testing.assert_array_equal(rgb_from_image(message), [[COLOUR]])


def compressed(
    picture: np.ndarray, ending: str, format: str, header: bytes = b''
) -> CompressedImage:
    _, data = cv2.imencode(ending, picture)
    return CompressedImage(format=format, data=array('B', header + data.tobytes()))


def test_compressed_colour_and_depth():
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    png = compressed(bgr, '.png', 'rgb8; png compressed bgr8')
    assert size_of(png, 'image', max_pixels=35) == (5, 7)
    np.testing.assert_array_equal(rgb_from_image(png), bgr[..., ::-1])
    smooth = np.full((16, 16, 3), (10, 100, 200), np.uint8)
    jpeg = rgb_from_image(compressed(smooth, '.jpg', 'jpeg'))
    assert np.abs(jpeg.astype(int) - smooth[..., ::-1]).max() <= 4
    millimetres = rng.integers(0, 65536, (5, 7)).astype(np.uint16)
    depth = compressed(millimetres, '.png', '16UC1; compressedDepth png', bytes(12))
    assert size_of(depth, 'depth', max_pixels=35) == (5, 7)
    np.testing.assert_allclose(depth_from_image(depth), millimetres / 1000, atol=1e-4)


@pytest.mark.parametrize('png', [' png', ''])
def test_compressed_depth_in_metres(png):
    """Quantised as the transport does by default: an hundredth of a metre, up to ten."""
    metres = np.float32([[0.5, 1.25, 3.0], [9.9, 20.0, np.nan]])
    a = 100.0 * (100.0 + 1.0)
    b = 1.0 - a / 10.0
    with np.errstate(invalid='ignore'):
        stored = np.where(metres < 10.0, a / metres + b, 0).astype(np.uint16)
    header = np.int32(1).tobytes() + np.float32([a, b]).tobytes()
    message = compressed(stored, '.png', f'32FC1; compressedDepth{png}', header)
    assert size_of(message, 'depth', max_pixels=6) == (2, 3)
    found = depth_from_image(message)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[metres < 10], metres[metres < 10], rtol=0.01)
    assert np.isnan(found[1, 1:]).all()


@pytest.mark.parametrize(
    ('message', 'name', 'what'),
    [
        (CompressedImage(format='jpeg'), 'image', "not 'jpeg' data"),
        (CompressedImage(format='jpeg', data=array('B', bytes(99))), 'image', "not 'jpeg' data"),
        (compressed(np.zeros((9, 9, 3), np.uint8), '.png', 'png'), 'image', '9x9 is more than'),
        (compressed(np.zeros((2, 2), np.uint16), '.png', 'png'), 'depth', "'png' is not one of "),
        (compressed(np.zeros((2, 2), np.uint8), '.tiff', 'tiff'), 'image', "not 'tiff' data"),
    ],
)
def test_refused_before_it_is_decoded(message, name, what):
    with pytest.raises(ValueError, match=what):
        size_of(message, name, max_pixels=80)


def test_an_odd_width_of_yuv_is_refused():
    message = Image(height=1, width=3, encoding='yuv422', step=6, data=array('B', bytes(6)))
    with pytest.raises(ValueError, match='cannot be converted'):
        rgb_from_image(message)
