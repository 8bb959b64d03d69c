"""Principal components of features."""

from __future__ import annotations

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
