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
    """Tells of each doubtful input once, by its name, unless it is accepted."""

    def __init__(
        self,
        accepted: Collection[str] = (),
        *,
        parameter: str,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        """Create an empty collection.

        Args:
            accepted: Names among `DOUBTS` that are meant as they are.
            parameter: Name of the setting that holds ``accepted``, for the messages.
            tell: Gets each message, such as the warning of a logger.

        Raises:
            ValueError: A name is not among `DOUBTS`.
        """
        for name in accepted:
            if name not in DOUBTS:
                raise ValueError(f"{parameter}: '{name}' is not one of {', '.join(DOUBTS)}")
        self._accepted = frozenset(accepted)
        self._parameter = parameter
        self._tell = tell
        self.told: dict[str, str] = {}
        """The messages so far, by name."""

    def warn(self, name: str, text: str, *, remedy: str = '') -> None:
        """Tell of an input that is used as the text says; ``remedy`` names another setting that
        settles it."""
        assert name in DOUBTS
        if name not in self._accepted and name not in self.told:
            self.told[name] = f'{text}; {remedy}' if remedy else self._sentence(name, text)
            if self._tell is not None:
                self._tell(self.told[name])

    def reject(self, name: str, text: str) -> None:
        """Raise ValueError for an input that is used only where its name is accepted."""
        assert name in DOUBTS
        if name not in self._accepted:
            raise ValueError(self._sentence(name, text))

    def _sentence(self, name: str, text: str) -> str:
        return f"{text}; if it is meant, add '{name}' to {self._parameter}"
