"""A video and a contact sheet of imagined and true frames."""

from __future__ import annotations

from pathlib import Path

import cv2
from jaxtyping import UInt8
import numpy as np

Rows = dict[str, np.ndarray]
"""Titles and frames (n, h, w, 3), all of one size."""

_BAND, _MARGIN, _GAP = 18, 110, 2
_INK, _PAPER = (40, 40, 40), 245


def contact_sheet(
    rows: Rows, *, times: np.ndarray, columns: int = 8, scale: int = 1
) -> UInt8[np.ndarray, 'h w 3']:
    """Draw a row for each title, with the same frames in each, the first and the last included."""
    frames = next(iter(rows.values()))
    picked = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    size = (_BAND + len(rows) * (height + _GAP), _MARGIN + len(picked) * (width + _GAP), 3)
    sheet = np.full(size, _PAPER, np.uint8)
    for column, index in enumerate(picked):
        x = _MARGIN + column * (width + _GAP)
        _write(sheet, f'{times[index] - times[0]:.1f} s', x + 4, _BAND - 5)
        for row, frames in enumerate(rows.values()):
            y = _BAND + row * (height + _GAP)
            sheet[y : y + height, x : x + width] = _enlarged(frames[index], scale)
    for row, title in enumerate(rows):
        _write(sheet, title, 6, _BAND + row * (height + _GAP) + height // 2)
    return sheet


def video_frames(rows: Rows, *, scale: int = 2) -> UInt8[np.ndarray, 'n h w 3']:
    """Put the rows of a contact sheet side by side, two in a line, each under its title."""
    cells = []
    for title, frames in rows.items():
        cell = np.stack([_enlarged(frame, scale) for frame in frames])
        band = np.full((_BAND, cell.shape[2], 3), _PAPER, np.uint8)
        _write(band, title, 6, _BAND - 5)
        cells.append(
            np.concatenate([np.broadcast_to(band, (len(cell), *band.shape)), cell], axis=1)
        )
    lines = [np.concatenate(cells[i : i + 2], axis=2) for i in range(0, len(cells), 2)]
    return np.concatenate(lines, axis=1)


def write_png(path: Path, picture: UInt8[np.ndarray, 'h w 3']) -> None:
    done = cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f'{path} could not be written')


def _enlarged(frame: UInt8[np.ndarray, 'h w 3'], scale: int) -> np.ndarray:
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def _write(picture: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
