"""How features were made: ``features.json`` in a data directory and in a run."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.pca import PCA, PCAFileError
from ..files import checksum, read_json, write_json
from . import PCA_FILE, SOURCE_FILE
from .images import Preprocessing
from .networks import NETWORKS, Network, load_network

_FORMAT = 1
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def pca_digest(pca: PCA) -> str:
    """Return "sha256:" and the SHA-256 of a PCA's mean and components."""
    return f"sha256:{checksum({'mean': pca.mean, 'components': pca.components})}"


@dataclass(frozen=True)
class FeatureSource:
    """How the features of a data directory were made from images.

    Attributes
    ----------
    network : str or None
        Name of the network, "onnx" for an ONNX model; None if it is not known, in which case
        images cannot be turned into such features.
    layer : str or None
        Its layer.
    digest : str or None
        The SHA-256 of its weights, as `Network.digest`.
    preprocessing : Preprocessing or None
        How images become its input.
    width : int
        Number of features of the network, before PCA.
    file : str or None
        Where the ONNX model was. `digest` decides whether a file there is the same one.
    pca : PCA or None
        The projection of the features.
    images : str or None
        The folder of the images. The URLs of the data directory are relative to it, or to the data
        directory if it is None.
    """

    network: str | None
    layer: str | None
    digest: str | None
    preprocessing: Preprocessing | None
    width: int
    file: str | None = None
    pca: PCA | None = field(default=None, compare=False)
    images: str | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        *,
        pca: PCA | None = None,
        images: str | os.PathLike[str] | None = None,
    ) -> FeatureSource:
        """Describe features of a network.

        Parameters
        ----------
        network : Network
            The network.
        pca : PCA, optional
            The projection of its features.
        images : path, optional
            The folder of the images.

        Raises
        ------
        ValueError
            If the PCA has another width than the features.
        """
        if pca is not None and len(pca.mean) != network.width:
            raise ValueError(
                f"pca has {len(pca.mean)} features; expected {network.width}, as {network.name} has"
            )
        return cls(
            network=network.name, layer=network.layer, digest=network.digest,
            preprocessing=network.preprocessing, width=network.width,
            file=None if network.file is None else str(network.file), pca=pca,
            images=None if images is None else str(Path(images).resolve()),
        )  # fmt: skip

    @classmethod
    def unknown(cls, width: int, *, images: str | os.PathLike[str] | None = None) -> FeatureSource:
        """Describe features of which only the width is known."""
        return cls(
            network=None, layer=None, digest=None, preprocessing=None, width=width,
            images=None if images is None else str(Path(images).resolve()),
        )  # fmt: skip

    @property
    def columns(self) -> int:
        """The number of features after PCA: what the model reads."""
        return self.width if self.pca is None else len(self.pca.components)

    def without_pca(self) -> FeatureSource:
        """Return the source of the features before PCA."""
        return dataclasses.replace(self, pca=None)

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Write ``features.json``, and ``pca.npz`` if there is a PCA, to a directory.

        Parameters
        ----------
        directory : path
            The data directory or the run directory.

        Raises
        ------
        OSError
            If the directory is not writable.
        """
        if self.pca is not None:
            # First: features.json is complete only with it.
            self.pca.save(Path(directory, PCA_FILE))
        write_json(Path(directory, SOURCE_FILE), self.describe())

    def describe(self) -> dict[str, Any]:
        """Return what ``features.json`` holds."""
        return {
            "format": _FORMAT,
            "network": self.network,
            "file": self.file,
            "layer": self.layer,
            "digest": self.digest,
            "preprocessing": self.preprocessing and self.preprocessing.as_dict(),
            "width": self.width,
            "pca": self.pca
            and {
                "file": PCA_FILE,
                "components": len(self.pca.components),
                "digest": pca_digest(self.pca),
            },
            "images": self.images,
        }

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> FeatureSource | None:
        """Read what `write` wrote.

        Parameters
        ----------
        directory : path
            The data directory or the run directory.

        Returns
        -------
        FeatureSource or None
            None if the directory has no ``features.json``.

        Raises
        ------
        ValueError
            If ``features.json`` or ``pca.npz`` is damaged, or they do not belong together.
        OSError
            If a file cannot be read, or ``pca.npz`` is missing.
        """
        path = Path(directory, SOURCE_FILE)
        if not path.exists():
            return None
        found = read_json(path)
        try:
            return cls._parse(found, path.parent)
        except PCAFileError:
            raise  # names its own file
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _parse(cls, found: Any, directory: Path) -> FeatureSource:
        names = (
            "format", "network", "file", "layer", "digest", "preprocessing", "width", "pca",
            "images",
        )  # fmt: skip
        if not isinstance(found, dict):
            raise ValueError(f"is {type(found).__name__}; expected an object")
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        if found["format"] != _FORMAT:
            raise ValueError(f"format is {found['format']!r}; expected {_FORMAT}")
        for name in ("network", "file", "layer", "digest", "images"):
            if not isinstance(found[name], str | None):
                raise ValueError(f"{name} is {found[name]!r}; expected a string or null")
        width = found["width"]
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"width is {width!r}; expected a positive integer")
        network, preprocessing = found["network"], None
        if network is not None:
            if network not in (*NETWORKS, "onnx"):
                raise ValueError(
                    f"network is {network!r}; expected {', '.join(NETWORKS)}, 'onnx' or null"
                )
            if found["layer"] is None:
                raise ValueError("layer is null; expected the layer of the network")
            if not _DIGEST.fullmatch(found["digest"] or ""):
                raise ValueError(f"digest is {found['digest']!r}; expected sha256: and 64 digits")
            preprocessing = Preprocessing.from_dict(found["preprocessing"])
        pca = cls._read_pca(found["pca"], directory, width)
        return cls(
            network=network, layer=found["layer"], digest=found["digest"],
            preprocessing=preprocessing, width=width, file=found["file"], pca=pca,
            images=found["images"],
        )  # fmt: skip

    @staticmethod
    def _read_pca(about: Any, directory: Path, width: int) -> PCA | None:
        if about is None:
            return None
        if not isinstance(about, dict) or about.get("file") != PCA_FILE:
            raise ValueError(f"pca is {about!r}; expected null or the file {PCA_FILE}")
        path = directory / PCA_FILE
        pca = PCA.load(path)
        if pca_digest(pca) != about.get("digest"):
            raise PCAFileError(
                f"{path}: is not the PCA that {SOURCE_FILE} describes; digests differ"
            )
        if pca.components.shape != (about.get("components"), width):
            raise PCAFileError(
                f"{path}: components has shape {pca.components.shape}; expected "
                f"({about.get('components')}, {width}), as {SOURCE_FILE} has"
            )
        return pca

    def check(self, network: Network) -> None:
        """Refuse another network than the one that made the features.

        Parameters
        ----------
        network : Network
            The network.

        Raises
        ------
        ValueError
            If the network differs. The message names the first difference.
        """
        if self.network is None:
            raise ValueError(
                "the network that made the features is not known; expected features.json to name it"
            )
        other = FeatureSource.of(network)
        for name in ("network", "layer", "digest", "width", "preprocessing"):
            had, has = getattr(self, name), getattr(other, name)
            if had != has:
                raise ValueError(
                    f"the network's {name} is {has}; expected {had}, which made the features"
                )

    def load_network(
        self,
        *,
        onnx: str | os.PathLike[str] | None = None,
        engine: str | None = None,
        threads: int | None = None,
    ) -> Network:
        """Load the network that made the features.

        Parameters
        ----------
        onnx : path, optional
            Where the ONNX model is now. Default where it was.
        engine, threads
            As for `fastrnn.vision.networks.load_network`.

        Returns
        -------
        Network
            The network.

        Raises
        ------
        ValueError
            If the network is not known, or what was loaded is another one.
        OSError, ImportError
            As for `fastrnn.vision.networks.load_network`.
        """
        if self.network is None:
            raise ValueError(
                "the network that made the features is not known, so photographs cannot be turned "
                "into such features"
            )
        if self.network == "onnx":
            found = load_network(
                onnx=onnx or self.file, layer=self.layer, engine=engine, threads=threads,
                preprocessing=self.preprocessing,
            )  # fmt: skip
        else:
            found = load_network(self.network, engine=engine, threads=threads)
        self.check(found)
        return found


def check_source(directory: str | os.PathLike[str], columns: int, *, raw: bool = False) -> None:
    """Refuse a data directory whose ``features.json`` describes features of another width.

    Parameters
    ----------
    directory : path
        The data directory.
    columns : int
        The number of features that its files have.
    raw : bool, optional
        Whether they are those before PCA.

    Raises
    ------
    ValueError
        If ``features.json`` is damaged, or does not describe these features.
    OSError
        If it cannot be read.
    """
    source = FeatureSource.read(directory)
    if source is None:
        return
    described = source.width if raw else source.columns
    if described != columns:
        kind = "before PCA" if raw else "after PCA" if source.pca is not None else "without PCA"
        raise ValueError(
            f"{Path(directory, SOURCE_FILE)}: describes {described} features {kind}; expected "
            f"{columns}, as the files of features have"
        )


def carry_source(
    directory: str | os.PathLike[str], run: str | os.PathLike[str], *, raw: bool = False
) -> None:
    """Copy what a data directory knows of its features to a run, if it knows anything.

    Parameters
    ----------
    directory : path
        The data directory.
    run : path
        The run directory. It has the PCA too then, and captions photographs without the data.
    raw : bool, optional
        Whether the run reads the features before PCA.

    Raises
    ------
    ValueError, OSError
        If the files cannot be read or written.
    """
    source = FeatureSource.read(directory)
    if source is None:
        return
    if raw:
        source = source.without_pca()
    try:
        carried = FeatureSource.read(run)
    except (OSError, ValueError):  # damaged in the run: it is written again
        carried = None
    if carried is None or carried.describe() != source.describe():
        source.write(run)


__all__ = [
    "PCA_FILE",
    "SOURCE_FILE",
    "FeatureSource",
    "carry_source",
    "check_source",
    "pca_digest",
]
