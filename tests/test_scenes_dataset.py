"""Scene data sets, in memory and on disk."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from PIL import Image

from fastrnn.coco_utils import decode_captions
from fastrnn.data.layout import read_captioning_directory
from fastrnn.data.pca import PCA
from fastrnn.data.scenes.dataset import make_scenes, read_scenes, write_scenes
from fastrnn.data.scenes.features import features_of
from fastrnn.data.scenes.language import caption_is_true
from fastrnn.words import strip_start_and_end


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small data set of scenes, on disk."""
    place = tmp_path_factory.mktemp("scenes")
    write_scenes(place, num_train=60, num_val=20, seed=3, size=24)
    return place


def test_the_seed_decides_everything():
    first, again, other = (make_scenes(20, 5, seed) for seed in (1, 1, 2))
    for split in ("train", "val"):
        assert first[split].scenes == again[split].scenes
        assert first[split].captions == again[split].captions
        np.testing.assert_array_equal(first[split].images, again[split].images)
        assert first[split].scenes != other[split].scenes


def test_the_directory_reads_back(directory):
    data = read_captioning_directory(directory)
    assert data["train_features"].shape == (60, 24)
    assert data["val_features"].dtype == np.float32
    assert len(data["train_captions"]) == 300
    np.testing.assert_array_equal(np.bincount(data["val_image_idxs"]), np.full(20, 5))
    scenes = read_scenes(directory)
    texts = [
        strip_start_and_end(text)
        for text in decode_captions(data["val_captions"], data["idx_to_word"])
    ]
    told = [scenes[i] for i in data["val_image_idxs"]]
    assert len(texts) == 100
    assert all(map(caption_is_true, texts, told))
    assert all((directory / url).is_file() for url in data["val_urls"])
    assert read_captioning_directory(directory, pca_features=False)["val_features"].shape[1] == 105


def test_a_picture_from_disk_has_the_features_of_the_data_set(directory):
    from PIL import Image

    data = read_captioning_directory(directory)
    images = np.stack([np.asarray(Image.open(directory / url)) for url in data["val_urls"]])
    found = features_of(images, PCA.load(directory / "pca.npz"))
    np.testing.assert_allclose(found, data["val_features"], rtol=1e-3, atol=1e-3)


def test_pictures_of_the_training_set_are_written_if_asked_for(directory, tmp_path):
    assert not [*directory.glob("images/train*")]
    write_scenes(tmp_path, num_train=60, num_val=20, seed=3, size=24, pictures=("train", "val"))
    data = read_captioning_directory(tmp_path)
    pca = PCA.load(tmp_path / "pca.npz")
    for split, count in (("train", 60), ("val", 20)):
        urls = data[f"{split}_urls"]
        assert len(urls) == count == len([*tmp_path.glob(f"images/{split}*.png")])
        pictures = np.stack([np.asarray(Image.open(tmp_path / url)) for url in urls])
        np.testing.assert_allclose(
            features_of(pictures, pca), data[f"{split}_features"], rtol=1e-4, atol=1e-4
        )


def test_threads_do_not_change_the_data(directory, tmp_path):
    write_scenes(tmp_path, num_train=60, num_val=20, seed=3, size=24, threads=2)
    ours, theirs = (read_captioning_directory(d) for d in (directory, tmp_path))
    np.testing.assert_array_equal(ours["train_captions"], theirs["train_captions"])
    np.testing.assert_allclose(ours["val_features"], theirs["val_features"], rtol=1e-3, atol=1e-3)


def test_scenes_that_cannot_be_read(tmp_path):
    assert read_scenes(tmp_path) is None
    for content in ('[[{"kind": "circle"}]]', "{", "3", "[[3]]"):
        (tmp_path / "val_scenes.json").write_text(content)
        with pytest.raises(ValueError, match=r"val_scenes\.json"):
            read_scenes(tmp_path)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="num_val is 0"):
        make_scenes(3, 0, seed=1)


def test_files_are_plain_hdf5(directory):
    with h5py.File(directory / "coco2014_captions.h5") as file:
        assert set(file) == {"train_captions", "train_image_idxs", "val_captions", "val_image_idxs"}
        assert file["train_captions"].dtype == np.int32
