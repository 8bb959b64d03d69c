"""Images made by gradients: fooling images and visualisations, of words and of classes."""

from __future__ import annotations

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from explain_models import CLASSES, WORDS, tiny_captioner, tiny_image, tiny_network  # noqa: E402
from PIL import Image  # noqa: E402

from fastrnn.explain import (  # noqa: E402
    class_visualization_update_step,
    classifier_of,
    compute_saliency_maps,
    create_class_visualization,
    fool,
    make_fooling_image,
    visualise,
)
from fastrnn.vision.images import Preprocessing  # noqa: E402

SPOKEN = WORDS[4:]


def reread(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    file.seek(0)
    return file


# -- Words


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("image", range(2))
def test_the_model_says_the_word_of_a_fooling_image(cell_type, image):
    captioner = tiny_captioner(cell_type)
    before = captioner([tiny_image(image)], max_length=30)[0].captions[0]
    wanted = [word for word in SPOKEN if word not in before.words][:2]
    assert wanted
    for word in wanted:
        found = fool(captioner, tiny_image(image), word, bound=80)
        assert found.before == before.text
        assert found.image.dtype == np.uint8
        np.testing.assert_array_equal(found.original, tiny_image(image))
        after = captioner([reread(found.image)])[0].captions[0]
        assert word in after.words
        assert after.text == found.after
        change = found.image.astype(int) - tiny_image(image)
        assert found.change == pytest.approx(np.sqrt((change**2).mean()))
        assert found.largest == np.abs(change).max()
        assert found.change <= 80


def test_a_fooling_image_is_closer_than_noise_that_fools():
    captioner = tiny_captioner("rnn")
    before = captioner([tiny_image()])[0].captions[0]
    word = next(word for word in SPOKEN if word not in before.words)
    found = fool(captioner, tiny_image(), word, bound=80)
    random = np.random.default_rng(0)
    for _ in range(20):  # random changes of twice the size do not do it
        noise = random.normal(size=found.image.shape)
        noise *= 2 * found.change / np.sqrt((noise**2).mean())
        noisy = np.clip(np.rint(tiny_image() + noise), 0, 255).astype(np.uint8)
        assert word not in captioner([noisy])[0].captions[0].words
    # and neither does half of the change
    half = np.rint((found.image.astype(float) + tiny_image()) / 2).astype(np.uint8)
    assert word not in captioner([half])[0].captions[0].words


def test_a_bound_is_kept():
    captioner = tiny_captioner("rnn")
    before = captioner([tiny_image()])[0].captions[0]
    word = next(word for word in SPOKEN if word not in before.words)
    least = fool(captioner, tiny_image(), word, bound=80).change
    with pytest.raises(ValueError, match=r"within a bound of 0\.01, but the smallest"):
        fool(captioner, tiny_image(), word, bound=0.01, max_steps=5)
    with pytest.raises(ValueError, match="the smallest change found is"):
        fool(captioner, tiny_image(), word, bound=0.9 * least)
    assert fool(captioner, tiny_image(), word, bound=1.01 * least).change == least


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_a_visualisation_makes_its_word_probable(cell_type):
    captioner = tiny_captioner(cell_type, contrast=1)
    options = {"learning_rate": 0.3, "max_jitter": 0, "blur_every": 50}
    for word in ("dog", "cat", "red"):  # after the same words, so that the goal does not move
        few, many = (
            visualise(captioner, word, caption="a red", num_iterations=count, **options)
            for count in (1, 40)
        )
        assert many.image.shape == (12, 12, 3)
        assert many.log_prob > few.log_prob + 0.01
    found = visualise(captioner, "cat", num_iterations=20, **options)
    again = visualise(captioner, "cat", num_iterations=20, **options)
    assert found.caption == captioner([reread(found.image)])[0].caption
    np.testing.assert_array_equal(again.image, found.image)


def test_l2_regularisation_makes_an_image_gray():
    captioner = tiny_captioner()
    free, bound = (
        visualise(captioner, "dog", num_iterations=30, learning_rate=0.3, l2_reg=l2_reg)
        for l2_reg in (0, 100)
    )
    assert bound.image.std() < 0.3 * free.image.std()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: fool(c, tiny_image(), "zebra"), "word has 'zebra'"),
        (lambda c: fool(c, tiny_image(), "<UNK>"), "word has '<UNK>'"),
        (lambda c: fool(c, tiny_image(), "dog", bound=0), "bound is 0"),
        (lambda c: fool(c, tiny_image(), "dog", max_steps=0), "max_steps is 0"),
        (lambda c: visualise(c, "zebra"), "word has 'zebra'"),
        (lambda c: visualise(c, "dog", num_iterations=0), "num_iterations is 0"),
        (lambda c: visualise(c, "dog", caption="a zebra"), "caption has 'zebra'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_captioner())


def test_a_search_without_success_says_how_far_it_came():
    captioner = tiny_captioner()
    captioner.model.params["b_vocab"][9] -= 1000
    with pytest.raises(ValueError, match=r"but it says '.*' after a change of .* in 3 steps"):
        fool(captioner, tiny_image(), "red", max_steps=3)


def test_a_word_that_is_said_already_needs_no_fooling():
    captioner = tiny_captioner()
    word = captioner([tiny_image()])[0].captions[0].words[0]
    with pytest.raises(ValueError, match="which the caption has"):
        fool(captioner, tiny_image(), word)


# -- Classes


def image_batch(count: int = 3) -> np.ndarray:
    return np.stack([tiny_image(k).transpose(2, 0, 1) / 128 - 1 for k in range(count)])


def test_saliency_maps_of_classes_are_largest_differences():
    model, X = classifier_of(tiny_network(np.float64)), image_batch()
    y = np.array([1, 4, 0])
    maps = compute_saliency_maps(X, y, model)
    assert maps.shape == (3, 12, 12)
    tensors = compute_saliency_maps(torch.from_numpy(X), torch.from_numpy(y), model)
    np.testing.assert_allclose(tensors.numpy(), maps, rtol=1e-10)
    for n, i, j in ((0, 3, 5), (1, 11, 0), (2, 6, 6)):
        slopes = []
        for channel in range(3):
            values = []
            for step in (1e-5, -1e-5):
                moved = X.copy()
                moved[n, channel, i, j] += step
                values.append(float(model(torch.from_numpy(moved))[n, y[n]]))
            slopes.append((values[0] - values[1]) / 2e-5)
        assert maps[n, i, j] == pytest.approx(np.abs(slopes).max(), rel=1e-6)


@pytest.mark.parametrize("target", range(CLASSES))
def test_a_fooling_image_is_taken_for_its_class(target):
    model, X = classifier_of(tiny_network()), torch.from_numpy(image_batch(1)).float()
    before = X.clone()
    found = make_fooling_image(X, target, model, learning_rate=2.0, max_iter=300)
    assert torch.equal(X, before)
    assert int(model(found)[0].argmax()) == target
    if int(model(X)[0].argmax()) == target:
        assert torch.equal(found, X)


def test_an_update_step_follows_the_gradient():
    model = classifier_of(tiny_network(np.float64))
    img = torch.from_numpy(image_batch(1))
    start = img.clone()
    class_visualization_update_step(img, model, 2, l2_reg=1e-2, learning_rate=1e-3)
    assert float((img - start).norm()) == pytest.approx(1e-3)

    def goal(x: torch.Tensor) -> float:
        return float(model(x)[0, 2] - 1e-2 * (x * x).sum())

    random = np.random.default_rng(0)
    for _ in range(20):  # no other step of this length climbs more
        other = torch.from_numpy(random.normal(size=img.shape))
        other *= 1e-3 / other.norm()
        assert goal(start + other) < goal(img)


def test_a_class_visualisation_has_its_class():
    network = tiny_network()
    model = classifier_of(network)
    options = {"preprocessing": network.preprocessing, "max_jitter": 2, "learning_rate": 1.0}
    for target in range(CLASSES):
        first, last = (
            create_class_visualization(target, model, torch.float32, num_iterations=n, **options)
            for n in (1, 60)
        )
        scores = network.classify(
            np.stack([image.transpose(2, 0, 1) for image in (first, last)]).astype(np.float32) / 128
            - np.float32(127 / 128)
        )
        assert last.dtype == np.uint8
        assert scores[1, target] > scores[0, target]


def test_the_network_of_the_course_is_the_default():
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.detach().clone())
            return x.mean((2, 3))

    image = create_class_visualization(0, Model(), num_iterations=3)
    assert image.shape == (224, 224, 3)
    low, high = (0 - 0.485) / 0.229, (1 - 0.485) / 0.229  # the range of a red pixel
    assert float(seen[-1][0, 0].max()) <= high + 1e-6
    assert float(seen[-1][0, 0].min()) >= low - 1e-6
    assert image[..., 0].mean() > image[..., 1].mean()
    assert Preprocessing().size == 224
