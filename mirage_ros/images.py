"""Images in messages: checked, decoded to RGB and metres, and encoded."""

from __future__ import annotations

from array import array
import io
from typing import Literal
import warnings

import cv2
from jaxtyping import Float32, Shaped, UInt8
import numpy as np
import PIL.Image
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from mirage_model.messages.sensors import (
    COMPRESSED_DEPTH_HEADER,
    COMPRESSED_DEPTHS,
    decompressed_depth,
)

try:
    from cv_bridge import CvBridge

    image_array = CvBridge().imgmsg_to_cv2
except ImportError:
    from rosbags.image import message_to_cvimage as image_array

Compression = Literal['none', 'jpeg', 'png']

COLOUR_BYTES = {
    'rgb8': 3,
    'bgr8': 3,
    'rgba8': 4,
    'bgra8': 4,
    'mono8': 1,
    'rgb16': 6,
    'bgr16': 6,
    'rgba16': 8,
    'bgra16': 8,
    'mono16': 2,
    'yuv422': 2,
    'yuv422_yuy2': 2,
    'bayer_rggb8': 1,
    'bayer_bggr8': 1,
    'bayer_gbrg8': 1,
    'bayer_grbg8': 1,
}
DEPTH_BYTES = {'32FC1': 4, '16UC1': 2}


# what a camera sends


def rgb_from_image(message: Image | CompressedImage) -> UInt8[np.ndarray, 'h w 3']:
    """Of 16 bits the upper eight."""
    if isinstance(message, CompressedImage):
        picture = array_from_compressed(message, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    else:
        message = _checked(message, COLOUR_BYTES, 'image')
        try:
            picture = image_array(message, 'rgb8')
        except cv2.error as error:
            raise ValueError(
                f'image: {message.height}x{message.width} {message.encoding} cannot be converted: {error.err}'
            ) from None
    return np.ascontiguousarray(picture)


def depth_from_image(message: Image | CompressedImage) -> Float32[np.ndarray, 'h w']:
    """Metres; zero, negative and NaN stay what they are, the engine takes them as invalid."""
    if isinstance(message, CompressedImage):
        return decompressed_depth(message.format, message.data)
    message = _checked(message, DEPTH_BYTES, 'depth')
    depth = np.asarray(image_array(message, message.encoding))
    return depth * np.float32(0.001) if message.encoding == '16UC1' else depth.astype(np.float32)


def size_of(message: Image | CompressedImage, name: str, *, max_pixels: int) -> tuple[int, int]:
    """Height and width, before a pixel is decoded. Raise ValueError as `check_image` does."""
    if isinstance(message, Image):
        table = COLOUR_BYTES if name == 'image' else DEPTH_BYTES
        check_image(message, table, name, max_pixels=max_pixels)
        return message.height, message.width
    data = bytes(message.data)
    if name == 'depth':
        if message.format not in COMPRESSED_DEPTHS:
            raise ValueError(
                f"depth: format '{message.format}' is not one of {sorted(COMPRESSED_DEPTHS)}"
            )
        data = data[COMPRESSED_DEPTH_HEADER:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(data), formats=('JPEG', 'PNG')) as picture:
                width, height = picture.size
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not '{message.format}' data: {error}") from None
    if height * width > max_pixels:
        raise ValueError(f'{name}: {height}x{width} is more than limits.max_pixels, {max_pixels}')
    return height, width


def check_image(
    message: Image, bytes_per_pixel: dict[str, int], name: str, *, max_pixels: int | None = None
) -> None:
    """Raise ValueError for an encoding that is not among those given, a wrong length, or too many pixels."""
    if message.encoding not in bytes_per_pixel:
        raise ValueError(
            f"{name}: encoding '{message.encoding}' is not one of {sorted(bytes_per_pixel)}"
        )
    if message.height == 0 or message.width == 0:
        raise ValueError(f'{name}: empty, {message.height}x{message.width}')
    if max_pixels is not None and message.height * message.width > max_pixels:
        raise ValueError(
            f'{name}: {message.height}x{message.width} is more than limits.max_pixels, {max_pixels}'
        )
    row = message.width * bytes_per_pixel[message.encoding]
    if message.step < row or len(message.data) != message.step * message.height:
        raise ValueError(
            f'{name}: {len(message.data)} bytes in rows of {message.step} are not '
            f'{message.height}x{message.width} {message.encoding}'
        )


def _checked(message: Image, bytes_per_pixel: dict[str, int], name: str) -> Image:
    """The image with its rows lying close: rosbags-image passes over ``step``."""
    check_image(message, bytes_per_pixel, name)
    row = message.width * bytes_per_pixel[message.encoding]
    if message.step == row:
        return message
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :row]
    return Image(
        header=message.header,
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        is_bigendian=message.is_bigendian,
        step=row,
        data=array('B', rows.tobytes()),
    )


# what was imagined


def image_message(
    array_: Shaped[np.ndarray, 'h w *channels'], encoding: str, header: Header
) -> Image:
    """Of an array whose type and channels are those of the encoding."""
    height, width = array_.shape[:2]
    return Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        step=array_.nbytes // height,
        data=array('B', array_.tobytes()),
    )


def compressed_message(
    array_: UInt8[np.ndarray, '...'], compression: Compression, quality: int, header: Header
) -> CompressedImage:
    """JPEG or PNG of RGB or of one channel."""
    stored = cv2.cvtColor(array_, cv2.COLOR_RGB2BGR) if array_.ndim == 3 else array_
    options = {
        'jpeg': ('.jpg', [cv2.IMWRITE_JPEG_QUALITY, quality]),
        'png': (
            '.png',
            [
                cv2.IMWRITE_PNG_COMPRESSION,
                1,
                cv2.IMWRITE_PNG_STRATEGY,
                cv2.IMWRITE_PNG_STRATEGY_RLE,
            ],
        ),
    }
    ending, flags = options[compression]
    done, data = cv2.imencode(ending, stored, flags)
    assert done
    return CompressedImage(header=header, format=compression, data=array('B', data.tobytes()))


def array_from_compressed(
    message: CompressedImage, how: int = cv2.IMREAD_UNCHANGED
) -> UInt8[np.ndarray, '...']:
    """RGB, or one channel where there is one; raises ValueError for data that is no image."""
    data = np.frombuffer(message.data, np.uint8)
    stored = cv2.imdecode(data, how) if len(data) else None
    if stored is None:
        raise ValueError(f"compressed image: not '{message.format}' data")
    return cv2.cvtColor(stored, cv2.COLOR_BGR2RGB) if stored.ndim == 3 else stored
