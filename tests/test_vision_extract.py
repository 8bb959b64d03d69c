"""Features of many images: order, unreadable images, and going on after an interruption."""

from __future__ import annotations

import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from vision_models import SIDE, MeanNetwork

from fastrnn.vision.extract import extract_features, partial_file
from fastrnn.vision.images import ImageError

COUNT = 23


@pytest.fixture
def images(tmp_path, rng) -> list[Path]:
    """Images of one colour each."""
    folder = tmp_path / "images"
    folder.mkdir()
    found = []
    for number in range(COUNT):
        found.append(folder / f"{number:02}.png")
        Image.new("RGB", (SIDE, SIDE), (number, 2 * number, 255 - number)).save(found[-1])
    return found


def expected(numbers) -> np.ndarray:
    return np.array([[(n - 127) / 128, (2 * n - 127) / 128, (128 - n) / 128] for n in numbers])


def written(out: Path) -> np.ndarray:
    with h5py.File(out) as file:
        assert list(file) == ["features"]
        assert file["features"].dtype == np.float32
        return file["features"][:]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [None, 1, 5, 100])
def test_rows_are_in_the_order_of_the_images(images, tmp_path, threads, batch_size):
    network = MeanNetwork(threads=threads)
    # The first images take longest.
    network.before = lambda batch: time.sleep(0.002 * (batch[0, 0, 0, 0] < -0.9))
    out = tmp_path / "f.h5"
    calls: list[tuple[int, int]] = []
    found = extract_features(
        images, network, out, batch_size=batch_size, progress=lambda *done: calls.append(done)
    )
    np.testing.assert_allclose(written(out), expected(range(COUNT)), atol=1e-6)
    assert (found.rows, found.unreadable, found.resumed) == ([*range(COUNT)], [], 0)
    assert network.images == COUNT
    assert network.most <= threads
    assert calls[0] == (0, COUNT) and calls[-1] == (COUNT, COUNT)
    assert calls == sorted(calls)
    assert not partial_file(out).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"f.h5", "images"}


def spoil(images: list[Path]) -> dict[int, str]:
    """Spoil some images; return what is wrong with each."""
    images[0].write_bytes(b"")
    images[3].write_text("no picture")
    images[4].write_bytes(images[4].read_bytes()[:45])
    images[22].unlink()
    return {0: "empty", 3: "expected one of", 4: "cannot be read", 22: "No such file"}


def test_unreadable_images_are_left_out_by_name(images, tmp_path):
    wrong = spoil(images)
    network = MeanNetwork()
    found = extract_features(images, network, tmp_path / "f.h5")
    readable = [number for number in range(COUNT) if number not in wrong]
    assert found.rows == readable
    np.testing.assert_allclose(written(tmp_path / "f.h5"), expected(readable), atol=1e-6)
    assert [path for path, _ in found.unreadable] == [images[number] for number in wrong]
    for (path, why), problem in zip(found.unreadable, wrong.values(), strict=True):
        assert problem in why
        assert str(path) not in why
    assert network.images == len(readable)


def test_unreadable_images_can_end_the_call(images, tmp_path):
    images[4].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"04\.png: cannot be read"):
        extract_features(images, MeanNetwork(), tmp_path / "f.h5", stop_at_unreadable=True)
    assert not (tmp_path / "f.h5").exists()
    images[4].unlink()
    with pytest.raises(FileNotFoundError):
        extract_features(images, MeanNetwork(), tmp_path / "f.h5", stop_at_unreadable=True)


def test_no_readable_image(images, tmp_path):
    for path in images:
        path.write_bytes(b"no picture")
    (tmp_path / "f.h5").write_text("old")
    with pytest.raises(ImageError, match="none of the 23 images is readable"):
        extract_features(images, MeanNetwork(), tmp_path / "f.h5")
    assert (tmp_path / "f.h5").read_text() == "old"
    with pytest.raises(ValueError, match="images is empty"):
        extract_features([], MeanNetwork(), tmp_path / "f.h5")
    with pytest.raises(ValueError, match="batch_size is 0"):
        extract_features(images, MeanNetwork(), tmp_path / "f.h5", batch_size=0)


def test_features_that_are_not_finite_are_those_of_an_unreadable_image(images, tmp_path):
    network = MeanNetwork()

    def spoil_second(batch: np.ndarray) -> None:
        batch[np.isclose(batch[:, 0, 0, 0], -126 / 128)] = np.inf

    network.before = spoil_second
    found = extract_features(images, network, tmp_path / "f.h5")
    assert found.unreadable == [(images[1], "its features are not finite")]
    assert len(written(tmp_path / "f.h5")) == COUNT - 1


def stop_after(count: int):
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


def interrupted(images: list[Path], out: Path, count: int = 9) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_features(images, MeanNetwork(), out, progress=stop_after(count))
    assert partial_file(out).exists()


def test_going_on_after_an_interruption(images, tmp_path):
    out = tmp_path / "f.h5"
    out.write_text("old")
    interrupted(images, out)
    assert out.read_text() == "old"
    network, calls = MeanNetwork(), []
    found = extract_features(images, network, out, progress=lambda done, total: calls.append(done))
    assert found.resumed == calls[0] == COUNT - network.images
    assert 9 <= found.resumed <= 10
    np.testing.assert_allclose(written(out), expected(range(COUNT)), atol=1e-6)
    assert not partial_file(out).exists()


def test_starting_over_when_asked(images, tmp_path):
    interrupted(images, tmp_path / "f.h5")
    network = MeanNetwork()
    assert extract_features(images, network, tmp_path / "f.h5", resume=False).resumed == 0
    assert network.images == COUNT


@pytest.mark.parametrize("change", ["network", "touched", "order", "fewer"])
def test_other_images_or_another_network_start_over(images, tmp_path, change):
    out = tmp_path / "f.h5"
    interrupted(images, out)
    network = MeanNetwork(digest="1" if change == "network" else "0")
    if change == "touched":
        os.utime(images[20], ns=(1, 1))
    elif change == "order":
        images[0], images[1] = images[1], images[0]
    elif change == "fewer":
        images.pop()
    assert extract_features(images, network, out).resumed == 0
    assert network.images == len(images)
    numbers = [int(path.stem) for path in images]
    np.testing.assert_allclose(written(out), expected(numbers), atol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros", "head", "empty"])
def test_damaged_rows_are_computed_again(images, tmp_path, damage):
    out = tmp_path / "f.h5"
    interrupted(images, out)
    part = partial_file(out)
    content = bytearray(part.read_bytes())
    head, size = content.index(b"\n") + 1, 4 * (1 + 3)
    if damage == "cut":
        content, sound = content[: head + 5 * size + 7], 5
    elif damage == "flipped":
        content[head + 4 * size + 6] ^= 1
        sound = 4
    elif damage == "zeros":
        content[head + 6 * size :] = bytes(len(content) - head - 6 * size)
        sound = 6
    else:
        content, sound = (b"?" * 300 if damage == "head" else b""), 0
    part.write_bytes(content)
    network = MeanNetwork()
    assert extract_features(images, network, out).resumed == sound
    assert network.images == COUNT - sound
    np.testing.assert_allclose(written(out), expected(range(COUNT)), atol=1e-6)


def test_unreadable_images_are_tried_again(images, tmp_path):
    """An image that appears later, as of a disk that was away, gets its row."""
    out = tmp_path / "f.h5"
    sound = [path.read_bytes() for path in images]
    times = [path.stat().st_mtime_ns for path in images]
    for number in (1, 4):  # of the same size and time, so that the list is unchanged
        images[number].write_bytes(bytes(len(sound[number])))
        os.utime(images[number], ns=(times[number],) * 2)
    interrupted(images, out)
    images[4].write_bytes(sound[4])
    os.utime(images[4], ns=(times[4],) * 2)
    network = MeanNetwork()
    found = extract_features(images, network, out)
    assert [path for path, _ in found.unreadable] == [images[1]]
    readable = [number for number in range(COUNT) if number != 1]
    np.testing.assert_allclose(written(out), expected(readable), atol=1e-6)
    assert network.images < COUNT - 5


def test_kept_rows_are_copied(images, tmp_path):
    out = tmp_path / "f.h5"
    extract_features(images, MeanNetwork(), out, keep=True)
    out.unlink()
    network = MeanNetwork()
    assert extract_features(images, network, out).resumed == COUNT
    assert network.images == 0
    np.testing.assert_allclose(written(out), expected(range(COUNT)), atol=1e-6)


def test_two_at_a_time_are_refused(images, tmp_path):
    out, problems = tmp_path / "f.h5", []

    def meddle(done: int, total: int) -> None:
        if done == total:
            with pytest.raises(OSError, match="another process") as error:
                extract_features(images, MeanNetwork(), out)
            problems.append(str(error.value))

    extract_features(images, MeanNetwork(), out, progress=meddle)
    assert problems and problems[0].startswith(str(partial_file(out)))
    assert len(written(out)) == COUNT


def test_errors_of_the_network_end_the_call(images, tmp_path):
    network = MeanNetwork()

    def fail(batch: np.ndarray) -> None:
        raise ValueError("no more")

    network.before = fail
    with pytest.raises(ValueError, match="no more"):
        extract_features(images, network, tmp_path / "f.h5")
    with pytest.raises(FileNotFoundError):
        extract_features(images, MeanNetwork(), tmp_path / "none" / "f.h5")
