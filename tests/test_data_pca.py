"""Principal components of features."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastrnn.data.pca import PCA


def test_pca_agrees_with_the_singular_vectors(rng):
    x = rng.standard_normal((200, 6)) * [9, 5, 3, 2, 1, 0.5] + 4
    z = PCA.fit(x, 3).transform(x)
    _, _, rows = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    expected = (x - x.mean(axis=0)) @ rows[:3].T
    expected /= expected.std(axis=0)
    for k in range(3):
        assert abs(np.corrcoef(z[:, k], expected[:, k])[0, 1]) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-4)


def test_pca_does_not_blow_up_what_is_constant():
    x = np.outer(np.arange(10.0), [1, 2, 0])
    z = PCA.fit(x, 3).transform(x)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z[:, 1:], 0, atol=1e-3)


def test_pca_of_what_is_next_to_nothing_and_its_signs(rng):
    x = rng.standard_normal((500, 3)) * [1.0, 0.1, 1e-5]
    pca = PCA.fit(x, 3)
    # The last is divided by a hundredth of the largest deviation, not by its own.
    np.testing.assert_allclose(pca.transform(x).std(axis=0), [1, 1, 1e-3], rtol=0.2)
    for row in pca.components:
        assert row[np.abs(row).argmax()] > 0


def test_pca_refuses_what_it_cannot_fit(tmp_path):
    with pytest.raises(ValueError, match="x has shape"):
        PCA.fit(np.zeros((0, 4)), 2)
    with pytest.raises(ValueError, match="size is 0"):
        PCA.fit(np.zeros((4, 4)), 0)
    with pytest.raises(ValueError, match="x has shape"):
        PCA.fit(np.ones((4, 4)), 2).transform(np.ones((4, 5)))
    (tmp_path / "pca.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"pca\.npz"):
        PCA.load(tmp_path / "pca.npz")
    np.savez(tmp_path / "pca.npz", mean=np.zeros(4))
    with pytest.raises(ValueError, match=r"pca\.npz: 'components' is missing"):
        PCA.load(tmp_path / "pca.npz")
    with pytest.raises(FileNotFoundError):
        PCA.load(tmp_path / "none.npz")


@pytest.fixture
def small_parts(monkeypatch):
    """A few rows at a time."""
    monkeypatch.setattr("fastrnn.data.pca._PART_BYTES", 8 * 6 * 7)
    monkeypatch.setattr("fastrnn.data.h5.HAS_PROCESSES", False)  # to patch what it would do
    monkeypatch.setattr("fastrnn.data.h5_process._BLOCK", 8 * 6 * 7)


def save(path: Path, x: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, x)
    else:
        with h5py.File(path, "w") as file:
            file["features"] = x
    return path


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["x.h5", "x.npy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_pca_of_a_file(rng, tmp_path, name, dtype):
    x = (rng.standard_normal((200, 6)) * [9, 5, 3, 2, 1, 0.5] + 40).astype(dtype)
    path = save(tmp_path / name, x)
    pca = PCA.fit_file(path, 3)
    peer = PCA.fit(x.astype(np.float64), 3)
    np.testing.assert_allclose(pca.mean, peer.mean, rtol=1e-6)
    np.testing.assert_allclose(pca.components, peer.components, rtol=1e-4, atol=1e-7)
    assert pca.transform_file(path, tmp_path / "out.h5") == (200, 3)
    with h5py.File(tmp_path / "out.h5") as file:
        found = file["features"][:]
    assert found.dtype == np.float32
    _, _, rows = np.linalg.svd(x - x.mean(axis=0, dtype=float), full_matrices=False)
    z = (x - x.mean(axis=0, dtype=float)) @ rows[:3].T
    signs = np.sign((found * z).sum(axis=0))
    np.testing.assert_allclose(found, signs * z / z.std(axis=0), atol=2e-3)


@pytest.mark.usefixtures("small_parts")
def test_pca_of_some_rows_of_a_file(rng, tmp_path):
    x = rng.standard_normal((100, 6)).astype(np.float32)
    x[::3] += 50  # what is not to be seen
    rows = np.flatnonzero(np.arange(100) % 3)
    pca = PCA.fit_file(save(tmp_path / "x.h5", x), 2, rows=rows)
    peer = PCA.fit(x[rows], 2)
    np.testing.assert_allclose(pca.mean, peer.mean, atol=1e-6)
    np.testing.assert_allclose(pca.components, peer.components, rtol=1e-3, atol=1e-5)


def test_pca_of_a_file_refuses(rng, tmp_path):
    x = rng.standard_normal((9, 6)).astype(np.float32)
    path = save(tmp_path / "x.h5", x)
    with pytest.raises(ValueError, match="size is 0"):
        PCA.fit_file(path, 0)
    for rows in ([], [0, 9], [-1, 2]):
        with pytest.raises(ValueError, match="rows has"):
            PCA.fit_file(path, 2, rows=np.array(rows, int))
    out = tmp_path / "out.h5"
    out.write_text("old")
    with pytest.raises(ValueError, match=r"x\.h5: features has shape \(9, 6\); expected \(N, 5\)"):
        PCA.fit(rng.standard_normal((9, 5)), 2).transform_file(path, out)
    assert out.read_text() == "old"
    for wrong in (x[0], x[:0], x.astype(int)):
        with pytest.raises(ValueError, match=r"x\.npy: not a file of features"):
            PCA.fit_file(save(tmp_path / "x.npy", wrong), 2)
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"x\.h5: features has values that are not finite"):
        PCA.fit_file(save(path, x), 2)
    np.save(tmp_path / "x.npy", np.array([[{}]], object), allow_pickle=True)
    for content in (b"", b"nothing", b"\x93NUMPY\1\0", (tmp_path / "x.npy").read_bytes()):
        (tmp_path / "y.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"y\.npy: not a file of features"):
            PCA.fit_file(tmp_path / "y.npy", 2)
    with pytest.raises(FileNotFoundError):
        PCA.fit_file(tmp_path / "none.h5", 2)


def test_pca_of_a_file_larger_than_the_memory_used(tmp_path):
    """Features that take 100 MB in memory, and twice as much in float64."""
    path, out = tmp_path / "large.h5", tmp_path / "out.h5"
    with h5py.File(path, "w") as file:
        # What is not written is zero, and takes no time to write.
        x = file.create_dataset("features", (100_000, 256), np.float32, chunks=(4000, 256))
        x[8000:8100, :3] = np.random.default_rng(0).standard_normal((100, 3)) * [9, 5, 3]
    code = (
        "import sys\n"
        "from fastrnn.data.pca import PCA\n"
        "PCA.fit_file(sys.argv[1], 3).transform_file(sys.argv[1], sys.argv[2])\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, path, out], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 1024 * int(done.stdout) < 300e6
    with h5py.File(out) as file:
        assert file["features"].shape == (100_000, 3)
        assert np.abs(file["features"][8000:8100]).min() > 0
