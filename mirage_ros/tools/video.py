"""A video and a contact sheet of generated and true frames."""

from __future__ import annotations

from pathlib import Path

import cv2
from jaxtyping import Float, UInt8
import numpy as np

Rows = dict[str, np.ndarray]
"""Titles and frames (n, h, w, 3), all of one size."""

GENERATED = 'generated'
"""Title of the frames that the model made; they have an edge of the colour `MARK`."""
MARK = (230, 60, 150)

_BAND, _MARGIN, _GAP, _LINE = 18, 118, 4, 16
_INK, _PAPER = (40, 40, 40), 245
_LEGEND = (
    (MARK, 'edge: made by the model, no camera saw it'),
    ((60, 170, 90), 'mask: the memory has it from a sensor'),
    ((230, 160, 30), 'mask: the memory has it from the model'),
    ((0, 0, 0), 'mask: the memory has nothing (grey)'),
)


def contact_sheet(
    rows: Rows, *, ahead: Float[np.ndarray, 'n'], columns: int = 8
) -> UInt8[np.ndarray, 'h w 3']:
    """Draw a row for each title, with the same frames in each, the first and the last included.

    Args:
        ahead: Time of each frame since the seed frame [s].
    """
    frames = next(iter(rows.values()))
    picked = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
    height, width = frames.shape[1:3]
    size = (_BAND + len(rows) * (height + _GAP), _MARGIN + len(picked) * (width + _GAP), 3)
    sheet = np.full(size, _PAPER, np.uint8)
    for row, (title, frames) in enumerate(rows.items()):
        y = _BAND + row * (height + _GAP)
        words = title.split(' ')
        lines = [' '.join(words[:2]), ' '.join(words[2:])] if len(words) > 2 else [title]
        for number, line in enumerate(lines):
            _write(sheet, line, 6, y + height // 2 + number * _LINE)
        for column, index in enumerate(picked):
            x = _MARGIN + column * (width + _GAP)
            if title == GENERATED:
                half = _GAP // 2
                sheet[y - half : y + height + half, x - half : x + width + half] = MARK
            sheet[y : y + height, x : x + width] = frames[index]
    for column, index in enumerate(picked):
        _write(sheet, f'{ahead[index]:.1f} s', _MARGIN + column * (width + _GAP) + 4, _BAND - 5)
    return np.concatenate([sheet, _legend(sheet.shape[1], columns=2)])


def video_frames(
    rows: Rows, *, ahead: Float[np.ndarray, 'n'], scale: int = 2
) -> UInt8[np.ndarray, 'n h w 3']:
    """Put the rows of a contact sheet side by side, two in a line, each under its title.

    Args:
        ahead: Time of each frame since the seed frame [s].
    """
    cells = []
    for title, frames in rows.items():
        cell = frames.repeat(scale, axis=1).repeat(scale, axis=2)
        # the edge lies on the picture: cells touch
        if title == GENERATED:
            cell[:, [0, 1, -2, -1]] = MARK
            cell[:, :, [0, 1, -2, -1]] = MARK
        band = np.full((len(cell), _BAND, cell.shape[2], 3), _PAPER, np.uint8)
        for picture, seconds in zip(band, ahead):
            _write(picture, f'{title}, {seconds:.1f} s ahead', 6, _BAND - 5)
        cells.append(np.concatenate([band, cell], axis=1))
    if len(cells) % 2:
        height, width = cells[0].shape[1:3]
        rest = np.full((height, width, 3), _PAPER, np.uint8)
        legend = _legend(width, columns=1)[:height]
        rest[: len(legend)] = legend
        cells.append(np.broadcast_to(rest, cells[0].shape))
    lines = [np.concatenate(cells[i : i + 2], axis=2) for i in range(0, len(cells), 2)]
    return np.concatenate(lines, axis=1)


def write_png(path: Path, picture: UInt8[np.ndarray, 'h w 3']) -> None:
    done = cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f'{path} could not be written')


def _legend(width: int, *, columns: int) -> UInt8[np.ndarray, 'h {width} 3']:
    """Draw what the colours mean."""
    lines = -(-len(_LEGEND) // columns)
    picture = np.full((lines * _BAND + _GAP, width, 3), _PAPER, np.uint8)
    for number, (colour, text) in enumerate(_LEGEND):
        x = 6 + number % columns * (width // columns)
        y = number // columns * _BAND
        picture[y + 5 : y + 15, x : x + 10] = colour
        _write(picture, text, x + 16, y + 14)
    return picture


def _write(picture: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.38, _INK, 1, cv2.LINE_AA)
