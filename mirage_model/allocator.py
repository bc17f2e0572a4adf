"""The C library's memory allocator, set for arrays that come and go with each chunk."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt, from malloc.h of glibc."""
KEPT = 256 << 20
"""Size up to which freed memory is kept in the process [bytes]."""


def keep_freed_pages() -> bool:
    """Make glibc keep freed memory, so that the next chunk does not fault its pages in again.

    Returns:
        False where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, 2 * KEPT), (M_TOP_PAD, KEPT // 8))
    return all([mallopt(name, size) == 1 for name, size in settings])
