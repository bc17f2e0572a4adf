"""Arrays of images as bytes, each image by itself and several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import io
from typing import Literal
import warnings

import cv2
import numpy as np
import PIL.Image

from mirage_model.serving.engine_pb2 import Array

JPEG_QUALITY = 95
MIN_IMAGE = 16
"""Smallest side of an array that is compressed as an image [px]."""
BLOCKS = (16, 8, 4, 2, 1)
"""Sides of the blocks of equal pixels that are looked for [px]."""
PLAIN_PART = 2**16
"""Smallest image that is a buffer of its own without compression [bytes]."""

Images = Literal['none', 'png', 'jpeg']
"""Compression of images: bit for bit, bit for bit too, or JPEG with depth in millimetres."""
Buffer = bytes | bytearray | memoryview
Part = memoryview | Future[bytes]
"""A buffer, or one that is being compressed."""

threads = ThreadPoolExecutor(thread_name_prefix='mirage-images')
"""Compress and decompress; OpenCV and NumPy release the interpreter meanwhile."""


class WireError(ValueError):
    """The value does not have the form that its type asks for."""


def buffer_of(part: Part) -> Buffer:
    """Return a buffer, once it is compressed."""
    return part.result() if isinstance(part, Future) else part


def compressed(array: np.ndarray, images: Images, name: str) -> tuple[str, list[Part]]:
    """Return the encoding of an array, and its buffers.

    Args:
        array: C-contiguous, in memory as it travels.
        images: Compression of images; everything else travels as it is.
        name: Name of the field that holds the array; only ``depth`` is stored as depth.
    """
    each = _as_images(array)
    if each is None:
        if images == 'jpeg' and _is_depth(array, name):
            return 'DEPTH_PNG', [threads.submit(_depth_png, array)]
        return 'RAW', [_bytes_of(array)]
    if each.ndim == 3:
        return 'BLOCKS', [threads.submit(_blocks, each)]
    if images == 'none':
        split = each if each[0].nbytes >= PLAIN_PART else [each]
        return 'RAW', [_bytes_of(image) for image in split]
    if images == 'jpeg':
        return 'JPEG', [threads.submit(_jpeg, image) for image in each]
    return 'PNG', [threads.submit(_png, image) for image in each]


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _is_depth(array: np.ndarray, name: str) -> bool:
    large = array.ndim == 2 and min(array.shape) >= MIN_IMAGE
    return large and array.dtype == np.float32 and name == 'depth'


def _as_images(array: np.ndarray) -> np.ndarray | None:
    """Return colours (n, h, w, 3) or masks (n, h, w), or None for other arrays."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
        return None
    colour = array.shape[-1] == 3
    if not colour and array.ndim == 4:
        return None
    each = array.reshape(-1, *array.shape[-3:]) if colour else array
    return each if min(each.shape[1:3]) >= MIN_IMAGE else None


def _blocks(masks: np.ndarray) -> bytes:
    """Return a pixel for each of the largest blocks of equal pixels that make up all masks."""
    height, width = masks.shape[1:]
    side = next(
        side
        for side in BLOCKS
        if not height % side and not width % side and all(_has_blocks(m, side) for m in masks)
    )
    return masks[:, ::side, ::side].tobytes()


def _has_blocks(mask: np.ndarray, side: int) -> bool:
    rows = mask[::side]
    if not (mask.reshape(len(rows), side, -1) == rows[:, None]).all():
        return False
    pixels = rows.reshape(len(rows), -1, side)
    return bool((pixels == pixels[..., :1]).all())


def _jpeg(image: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _png(image: np.ndarray) -> bytes:
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _depth_png(depth: np.ndarray) -> bytes:
    with np.errstate(invalid='ignore'):
        millimetres = np.where(depth > 0, np.rint(depth * 1000.0), 0)
    whole = np.where(millimetres < 65536, millimetres, 0)  # further away there is no depth
    return _png(whole.astype(np.uint16))


def parts_of(array: np.ndarray, encoding: int, count: int, name: str) -> list[np.ndarray]:
    """Return the parts of an array that its buffers fill. Raises WireError."""
    if encoding in (Array.RAW, Array.BLOCKS):
        masks = array.ndim == 3 and array.dtype == np.uint8 and count == 1
        if encoding == Array.BLOCKS and not masks:
            raise WireError(f'{name}: {count} buffers do not make masks of {array.shape}')
        if count < 1 or array.size % count:
            raise WireError(f'{name}: {count} buffers do not make an array of {array.shape}')
        return [array] if count == 1 else list(array.reshape(count, -1))
    colour = array.ndim in (3, 4) and array.shape[-1] == 3
    shape = array.shape[-3:] if colour else array.shape[-2:]
    wanted = np.float32 if encoding == Array.DEPTH_PNG else np.uint8
    if array.ndim < 2 or array.dtype != wanted or not array.size:
        raise WireError(f'{name}: an array of {array.shape} {array.dtype} is not made of images')
    images = array.reshape(-1, *shape)
    if len(images) != count:
        raise WireError(f'{name}: {count} images do not make an array of {array.shape}')
    return list(images)


def fill(into: np.ndarray, buffer: Buffer, encoding: int, name: str) -> None:
    """Write the content of a buffer into a part of an array. Raises WireError."""
    if encoding == Array.RAW:
        if len(buffer) != into.nbytes:
            raise WireError(f'{name}: has {len(buffer)} bytes, {into.shape} takes {into.nbytes}')
        into[...] = np.frombuffer(buffer, into.dtype).reshape(into.shape)
    elif encoding == Array.BLOCKS:
        _fill_blocks(into, buffer, name)
    else:
        _fill_image(into, buffer, encoding, name)


def _fill_blocks(into: np.ndarray, buffer: Buffer, name: str) -> None:
    count, height, width = into.shape
    for side in BLOCKS:
        if height % side or width % side or len(buffer) * side**2 != into.size:
            continue
        small = count, height // side, width // side
        pixels = np.frombuffer(buffer, into.dtype).reshape(small)
        rows = into.reshape(count, small[1], side, width)
        rows[...] = np.repeat(pixels, side, axis=2)[:, :, None]
        return
    raise WireError(f'{name}: {len(buffer)} blocks do not make masks of {into.shape}')


def _fill_image(into: np.ndarray, buffer: Buffer, encoding: int, name: str) -> None:
    _check_size(buffer, encoding, into.shape[:2], name)
    colour = into.ndim == 3
    flags = cv2.IMREAD_COLOR if colour else cv2.IMREAD_UNCHANGED
    image = cv2.imdecode(np.frombuffer(buffer, np.uint8), flags)
    if image is None or image.shape != into.shape:
        raise WireError(f'{name}: an image is damaged')
    if encoding == Array.DEPTH_PNG:
        np.multiply(image, np.float32(0.001), out=into)
    elif colour:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=into)
    else:
        into[...] = image


def _check_size(buffer: Buffer, encoding: int, size: Sequence[int], name: str) -> None:
    """Check format and size of an image by its header."""
    wanted = 'JPEG' if encoding == Array.JPEG else 'PNG'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(buffer), formats=(wanted,)) as image:
                found = image.size[::-1]
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        raise WireError(f'{name}: an image is not a {wanted}') from None
    if found != tuple(size):
        raise WireError(f'{name}: an image is {found}, its array needs {tuple(size)}')
