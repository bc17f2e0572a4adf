"""Doubtful inputs: right in rare set-ups, and a mistake in most."""

from __future__ import annotations

from collections.abc import Callable, Collection

DOUBTS = {
    'baseline': 'P[0,3] or P[1,3] moves the camera out of its frame',
    'body_frame': 'the optical axis points up while the camera moves level',
    'depth_camera': 'depth in the frame and size of the image, whose camera_info has another K',
    'depth_empty': 'depth without a single measurement',
    'depth_frame': 'depth in another frame than the image, or in none, is registered to it',
    'depth_unit': 'depth with a median under 3 cm or over 100 m',
    'distortion': 'P equal to K with distortion, so that images may not be rectified',
    'field_of_view': 'a field of view under 5 degrees',
    'path_orientation': 'poses of a path that never turn, or do not look where it goes',
    'pixel_aspect': 'pixels that are not nearly square',
    'principal_point': 'a principal point far from the centre of the image',
}
"""Names of doubts, and what is accepted by each."""


class Doubts:
    """Warnings of doubtful inputs: one for each name, unless the name is accepted."""

    def __init__(
        self,
        accepted: Collection[str] = (),
        *,
        parameter: str,
        log: Callable[[str], object] | None = None,
    ) -> None:
        """Create an empty collection.

        Args:
            accepted: Names among `DOUBTS` that are meant as they are.
            parameter: Name of the setting that holds ``accepted``, for the messages.
            log: Called with each warning, such as the method of a logger.

        Raises:
            ValueError: A name is not among `DOUBTS`.
        """
        for name in accepted:
            if name not in DOUBTS:
                raise ValueError(f"{parameter}: '{name}' is not one of {', '.join(DOUBTS)}")
        self._accepted = frozenset(accepted)
        self._parameter = parameter
        self._log = log
        self.warnings: dict[str, str] = {}
        """The warnings so far, by name."""

    def warn(self, name: str, text: str, *, remedy: str = '') -> None:
        """Warn of a doubtful input that is used all the same.

        Args:
            name: One of `DOUBTS`.
            text: The input, and how it is used.
            remedy: What to set to avoid the doubt; empty names the setting that accepts it.
        """
        assert name in DOUBTS
        if name not in self._accepted and name not in self.warnings:
            self.warnings[name] = f'{text}; {remedy}' if remedy else self._sentence(name, text)
            if self._log is not None:
                self._log(self.warnings[name])

    def reject(self, name: str, text: str) -> None:
        """Raise ValueError for an input that is used only where its name is accepted."""
        assert name in DOUBTS
        if name not in self._accepted:
            raise ValueError(self._sentence(name, text))

    def _sentence(self, name: str, text: str) -> str:
        return f"{text}; if it is meant, add '{name}' to {self._parameter}"
