"""Where the pictures of a data set are: the local files of its URLs."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["find_picture", "folder_of_images", "loaded_picture", "remember_directory"]


def find_picture(url: str, directory: Path, images: Path | None = None) -> Path | None:
    """Return the local file of a URL.

    Parameters
    ----------
    url : str
        A ``file://`` URL or a path. A path may be relative to `images` or `directory`; it then
        stays in there, so that a list of URLs from elsewhere cannot name other files of this
        machine.
    directory : Path
        The data directory.
    images : Path, optional
        The folder of the images, where it is known.

    Returns
    -------
    Path or None
        The file; None if the URL is not a local one, or there is no such file.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # not a URL, such as "http://["
        return None
    paths: list[Path | None]
    if parts.scheme == "file":
        paths = [Path(unquote(parts.path))]
    elif not url or (parts.scheme and not Path(url).is_absolute()):
        return None
    else:
        paths = [_within(place, url) for place in (images, directory) if place is not None]
    try:
        return next((path for path in paths if path is not None and path.is_file()), None)
    except (OSError, ValueError):  # the name is too long or has a null character
        return None


def _within(place: Path, name: str) -> Path | None:
    """Return the path of a name in a folder; None if ``..`` leads out of it."""
    if Path(name).is_absolute():
        return Path(name)
    # Without "..": behind a link to a folder, it would lead elsewhere than in the name.
    name = os.path.normpath(name)
    # On Windows, "C:name" and "\name" are neither absolute nor relative to a folder.
    if Path(name).drive or Path(name).root or Path(name).parts[:1] == ("..",):
        return None
    return place / name


def folder_of_images(directory: str | os.PathLike[str]) -> Path | None:
    """Return the folder of the images that the ``features.json`` of a data directory names.

    Returns
    -------
    Path or None
        None if it names none. The folder need not exist.

    Raises
    ------
    OSError, ValueError
        If ``features.json`` is damaged.
    """
    # Reads the digests of networks, which data without photographs do not need.
    from ..vision.source import FeatureSource

    source = FeatureSource.read(directory)
    if source is None or source.images is None:
        return None
    return Path(directory, source.images)


# -- the data set that was loaded last

_loaded: list[Path] = []
"""Its directory, and the folder of its images once it was asked for."""


def remember_directory(directory: str | os.PathLike[str]) -> None:
    """Remember the directory of the data set that was loaded last, for `loaded_picture`."""
    _loaded[:] = [Path(directory).absolute()]


def loaded_picture(url: str) -> tuple[Path | None, list[Path]]:
    """Return the local file of a URL of the data set that was loaded last.

    Returns
    -------
    path : Path or None
        See `find_picture`. None, too, if no data set was loaded.
    places : list of Path
        The folders that were looked in: that of the images, if it is known, and the data directory.
    """
    if not _loaded:
        return None, []
    if len(_loaded) == 1:
        directory = _loaded[0]
        try:
            images = folder_of_images(directory)
        except (OSError, ValueError):
            images = None  # whoever reads the features is told what is wrong with the file
        _loaded.append(directory if images is None else images)
    directory, images = _loaded
    return find_picture(url, directory, images), list(dict.fromkeys((images, directory)))
