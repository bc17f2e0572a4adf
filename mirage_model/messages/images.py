"""Images of messages: checked, and decoded to RGB and to metres.

A raw image has the attributes of sensor_msgs/Image, a compressed one those of
sensor_msgs/CompressedImage: JPEG or PNG, and for depth the PNG of the compressedDepth transport or
the PNG of 16 bits of the compressed transport.
"""

from __future__ import annotations

from dataclasses import dataclass
import io
from typing import Any, Literal
import warnings

import cv2
from jaxtyping import Float32, Shaped, UInt8
import numpy as np
import PIL.Image

Kind = Literal['image', 'depth']
"""How an image is read: as colours or as metres. Error messages begin with it."""


@dataclass(frozen=True)
class Encoding:
    """Layout of one pixel in a raw image.

    ``conversion`` is OpenCV's code to RGB, ``unit`` is the length of 1 in metres. NV12 and NV21
    store a plane of brightness and below it one of half its height for the colours.
    """

    dtype: str
    channels: int
    conversion: int | None = None
    unit: float = 1.0
    planar: bool = False

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of a pixel in a row; the second plane of NV12 counts as more rows."""
        return np.dtype(self.dtype).itemsize * self.channels


_UYVY = Encoding('u1', 2, cv2.COLOR_YUV2RGB_UYVY)
_YUYV = Encoding('u1', 2, cv2.COLOR_YUV2RGB_YUYV)
# OpenCV names a mosaic by the second row, ROS by the first
_BAYER = {
    'rggb': cv2.COLOR_BayerBG2RGB,
    'bggr': cv2.COLOR_BayerRG2RGB,
    'gbrg': cv2.COLOR_BayerGR2RGB,
    'grbg': cv2.COLOR_BayerGB2RGB,
}

ENCODINGS: dict[Kind, dict[str, Encoding]] = {
    'image': {
        **{
            f'{name}{bits}': Encoding(f'u{bits // 8}', channels, conversion)
            for bits in (8, 16)
            for name, channels, conversion in (
                ('rgb', 3, None),
                ('bgr', 3, cv2.COLOR_BGR2RGB),
                ('rgba', 4, cv2.COLOR_RGBA2RGB),
                ('bgra', 4, cv2.COLOR_BGRA2RGB),
                ('mono', 1, cv2.COLOR_GRAY2RGB),
                *((f'bayer_{pattern}', 1, code) for pattern, code in _BAYER.items()),
            )
        },
        '8UC1': Encoding('u1', 1, cv2.COLOR_GRAY2RGB),
        'uyvy': _UYVY,
        'yuv422': _UYVY,
        'yuyv': _YUYV,
        'yuv422_yuy2': _YUYV,
        'nv12': Encoding('u1', 1, cv2.COLOR_YUV2RGB_NV12, planar=True),
        'nv21': Encoding('u1', 1, cv2.COLOR_YUV2RGB_NV21, planar=True),
    },
    'depth': {
        '16UC1': Encoding('u2', 1, unit=0.001),
        'mono16': Encoding('u2', 1, unit=0.001),
        '32FC1': Encoding('f4', 1),
    },
}
"""Encodings of raw images: those of sensor_msgs/image_encodings that name their colours, and those
of REP 118 for depth."""

COMPRESSED_DEPTHS = {
    f'{kind}; compressedDepth{png}' for kind in ('16UC1', '32FC1') for png in (' png', '')
}
"""Formats of the compressedDepth transport; older versions leave out the name of the compression.
"""
DEPTH_PNGS = ('16UC1; png compressed', 'mono16; png compressed')
"""Formats of the compressed transport that keep depth: a PNG of millimetres, without a header."""
COMPRESSED_DEPTH_HEADER = 12
"""Bytes before the PNG of compressedDepth: int32 compression, float32 a, float32 b."""


def image_size(message: Any, kind: Kind, *, max_pixels: int | None = None) -> tuple[int, int]:
    """Return height and width of an image without decoding a pixel.

    Raises:
        ValueError: The encoding is not among `ENCODINGS`, the length of the data does not fit the
            size, the compressed data are neither JPEG nor PNG, or there are more than
            ``max_pixels`` pixels.
    """
    height, width = (_compressed_size if is_compressed(message) else _raw_size)(message, kind)
    if max_pixels is not None and height * width > max_pixels:
        raise ValueError(f'{kind}: {height}x{width} is more than limits.max_pixels, {max_pixels}')
    return height, width


def rgb_from_image(message: Any) -> UInt8[np.ndarray, 'h w 3']:
    """Return the colours of a raw or compressed image; of 16 bits the upper 8 are kept.

    Raises:
        ValueError: `image_size` rejects the message, or its data cannot be decoded.
    """
    if is_compressed(message):
        stored = _decoded(message.data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if stored is None:
            raise ValueError(f"image: not '{message.format}' data: it cannot be decoded")
        return cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    height, width = _raw_size(message, 'image')
    encoding = ENCODINGS['image'][message.encoding]
    pixels = _pixels(message, encoding)
    try:
        if encoding.conversion is not None:
            pixels = cv2.cvtColor(pixels, encoding.conversion)
    except cv2.error as error:
        raise ValueError(
            f'image: {height}x{width} {message.encoding} cannot be converted: {error.err}'
        ) from None
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def depth_from_image(message: Any) -> Float32[np.ndarray, 'h w']:
    """Return the depth in metres of a raw or compressedDepth image, NaN where there is none.

    Zero, negative and infinite depths count as none.

    Raises:
        ValueError: `image_size` rejects the message, or its data cannot be decoded.
    """
    if is_compressed(message):
        depth = _decompressed_depth(message)
    else:
        _raw_size(message, 'depth')
        encoding = ENCODINGS['depth'][message.encoding]
        depth = _pixels(message, encoding) * np.float32(encoding.unit)
    valid = np.isfinite(depth) & (depth > 0)
    return np.where(valid, depth, np.float32(np.nan))


def is_compressed(message: Any) -> bool:
    """Return whether a message is a sensor_msgs/CompressedImage."""
    return hasattr(message, 'format')


def _raw_size(message: Any, kind: Kind) -> tuple[int, int]:
    encodings = ENCODINGS[kind]
    if message.encoding not in encodings:
        raise ValueError(
            f"{kind}: encoding '{message.encoding}' is not one of {', '.join(sorted(encodings))}"
        )
    encoding = encodings[message.encoding]
    rows, width, step = message.height, message.width, message.step
    if rows == 0 or width == 0:
        raise ValueError(f'{kind}: empty, {rows}x{width}')
    height = rows
    if encoding.planar:
        # drivers give the height of the picture, OpenCV's bridges that of both planes
        if len(message.data) == step * rows:
            height = rows * 2 // 3
        else:
            rows = rows * 3 // 2
    if step < width * encoding.bytes_per_pixel or len(message.data) != step * rows:
        raise ValueError(
            f'{kind}: {len(message.data)} bytes in rows of {step} are not '
            f'{message.height}x{width} {message.encoding}'
        )
    return height, width


def _pixels(message: Any, encoding: Encoding) -> Shaped[np.ndarray, 'h w *channels']:
    """Return the stored pixels in the byte order of this machine, without the padding of the
    rows.
    """
    rows = np.frombuffer(message.data, np.uint8).reshape(-1, message.step)
    rows = np.ascontiguousarray(rows[:, : message.width * encoding.bytes_per_pixel])
    order = '>' if message.is_bigendian else '<'
    pixels = rows.view(np.dtype(order + encoding.dtype))
    pixels = pixels.astype(np.dtype(encoding.dtype), copy=False)
    return pixels if encoding.channels == 1 else pixels.reshape(len(rows), -1, encoding.channels)


def _compressed_size(message: Any, kind: Kind) -> tuple[int, int]:
    data = np.frombuffer(message.data, np.uint8)
    if kind == 'depth':
        data = data[_check_compressed_depth(message) :]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(data.tobytes()), formats=('JPEG', 'PNG')) as image:
                width, height = image.size
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{kind}: not '{message.format}' data: {error}") from None
    return height, width


def _decompressed_depth(message: Any) -> Float32[np.ndarray, 'h w']:
    """Return metres.

    16UC1 is millimetres; of 32FC1 the PNG holds a / depth + b, with a and b in the header.
    """
    start = _check_compressed_depth(message)
    data = np.frombuffer(message.data, np.uint8)
    stored = _decoded(data[start:], cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 2:
        raise ValueError(f"depth: '{message.format}' without a PNG of 16 bits")
    if not message.format.startswith('32FC1'):
        return stored * np.float32(0.001)
    a, b = data[4:start].copy().view('<f4')
    if not (np.isfinite([a, b]).all() and a > 0):
        raise ValueError(
            f"depth: '{message.format}' with the parameters {a:g} and {b:g}, from which no metres "
            'follow: depth of 16 bits is 16UC1'
        )
    with np.errstate(all='ignore'):
        return np.where(stored == 0, np.float32(np.nan), a / (stored.astype(np.float32) - b))


def _check_compressed_depth(message: Any) -> int:
    """Return the number of bytes before the PNG. Raises ValueError for another format."""
    if message.format.rstrip().startswith(DEPTH_PNGS):
        return 0
    if message.format not in COMPRESSED_DEPTHS:
        formats = ', '.join(f"'{name}'" for name in (*sorted(COMPRESSED_DEPTHS), *DEPTH_PNGS))
        raise ValueError(
            f"depth: format '{message.format}' is not one of {formats}: JPEG and 8 bits keep no "
            'metres, publish compressedDepth'
        )
    return COMPRESSED_DEPTH_HEADER


def _decoded(data: Any, flags: int) -> Shaped[np.ndarray, 'h w *channels'] | None:
    array = np.frombuffer(data, np.uint8)
    return cv2.imdecode(array, flags) if len(array) else None
