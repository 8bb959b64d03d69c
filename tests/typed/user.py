"""A user's script: layers, a model, the two ways to train it, captions, scores, files.

``mypy --strict`` and pyright accept it, and it runs: ``python user.py DATA RUN``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn
from fastrnn.captioner import Captioned, Captioner, ImageCaption
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.checkpoint import load_model, read_newest_checkpoint, save_model
from fastrnn.classifiers.rnn import CaptioningRNN, CaptioningWorkspace, Regularisation
from fastrnn.coco_utils import decode_captions, load_coco_data, sample_coco_minibatch
from fastrnn.decoding import Decoded, beam_search, greedy, sample
from fastrnn.evaluation import Evaluator, loss_per_word, references_of
from fastrnn.export import save_onnx, save_safetensors, to_torch
from fastrnn.gradient_check import eval_numerical_gradient_array
from fastrnn.layers import affine_backward, affine_forward, relu_forward, softmax_loss
from fastrnn.metrics import CaptionScorer, bleu_1, diversity, evaluate_captions
from fastrnn.optim import adam, clip_by_norm
from fastrnn.rnn_layers import (
    lstm_backward,
    lstm_forward,
    rnn_forward,
    rnn_step_forward,
    sigmoid,
    temporal_affine_forward,
    temporal_softmax_loss,
    word_embedding_backward,
    word_embedding_forward,
)
from fastrnn.training import ModelConfig, TrainConfig, Trainer, read_run, start_model


def use_layers() -> float:
    rng = np.random.default_rng(0)
    N, T, D, H, V = 3, 4, 5, 6, 7
    x, h0 = rng.standard_normal((N, T, D)), np.zeros((N, H))
    Wx, Wh, b = rng.standard_normal((D, 4 * H)), rng.standard_normal((H, 4 * H)), np.zeros(4 * H)
    h, cache = lstm_forward(x, h0, Wx, Wh, b)
    dx, dh0, dWx, dWh, db = lstm_backward(np.ones_like(h), cache)
    total = float(dx.sum() + dh0.sum() + dWx.sum() + dWh.sum() + db.sum())

    next_h, _ = rnn_step_forward(x[:, 0], h0, Wx[:, :H], Wh[:, :H], b[:H])
    every_h, _ = rnn_forward(x, h0, Wx[:, :H], Wh[:, :H], b[:H], lengths=np.array([4, 2, 1]))
    total += float(next_h.sum() + every_h.sum())

    words = rng.integers(0, V, (N, T))
    vectors, embedding = word_embedding_forward(words, rng.standard_normal((V, D)))
    total += float(word_embedding_backward(np.ones_like(vectors), embedding).sum())
    scores, _ = temporal_affine_forward(h, rng.standard_normal((H, V)), np.zeros(V))
    loss, dscores = temporal_softmax_loss(scores, words, words != 0)
    total += float(loss) + float(dscores.sum())

    out, affine = affine_forward(h0, rng.standard_normal((H, V)), np.zeros(V))
    dh, dw, _ = affine_backward(np.ones_like(out), affine)
    positive, _ = relu_forward(out)
    total += float(softmax_loss(positive, words[:, 0])[0]) + float(dh.sum() + dw.sum())
    numeric: np.ndarray[Any, Any] = eval_numerical_gradient_array(
        lambda v: np.asarray(sigmoid(v)), np.zeros(2), np.ones(2)
    )
    return total + float(numeric.sum())


def train_as_in_the_course(data: dict[str, Any]) -> CaptioningRNN:
    model = CaptioningRNN(
        data["word_to_idx"], input_dim=data["train_features"].shape[1], wordvec_dim=8,
        hidden_dim=8, cell_type="lstm", dtype=np.float32,
    )  # fmt: skip
    captions, features, urls = sample_coco_minibatch(data, batch_size=4, split="val")
    assert len(urls) == len(captions)
    workspace = CaptioningWorkspace()
    loss, grads = model.loss(
        features, captions, workspace=workspace, regularisation=Regularisation(vocab_dropout=0.1)
    )
    norm: float = clip_by_norm(grads, 5.0)
    config: dict[str, Any] = {"learning_rate": 1e-3}
    for name, w in model.params.items():
        model.params[name], config = adam(w, grads[name], {"learning_rate": 1e-3})
    print(f"loss {loss:.2f}, norm {norm:.2f}, {workspace.nbytes} bytes, {sorted(config)}")

    solver = CaptioningSolver(
        model, data, update_rule="adam", num_epochs=1, batch_size=6,
        optim_config={"learning_rate": 5e-3}, lr_decay=0.95, verbose=False,
    )  # fmt: skip
    solver.train()
    losses: list[float] = [float(value) for value in solver.loss_history]
    assert len(losses) == 6
    return model


def train(data: dict[str, Any], run: Path) -> CaptioningRNN:
    start = ModelConfig(cell="lstm", wordvec_dim=8, hidden_dim=8)
    model = start_model(data, start.cell, start.wordvec_dim, start.hidden_dim, seed=1)
    steps: list[float] = []

    def on_step(trainer: Trainer, record: dict[str, Any]) -> None:
        steps.append(record["loss"])
        if trainer.step > 100:
            trainer.stop()

    trainer = Trainer(
        model, data, TrainConfig(epochs=2, batch_size=6), run=run,
        settings={"data": str(run)}, on_step=on_step,
    )  # fmt: skip
    history: list[dict[str, Any]] = trainer.fit()
    best: dict[str, Any] | None = trainer.best
    assert trainer.finished and best is not None and history and len(steps) == trainer.step
    settings: dict[str, Any] = read_run(run).settings
    print(f"epoch {best['epoch']}, {len(settings)} settings")
    return trainer.model


def caption(model: CaptioningRNN, data: dict[str, Any]) -> list[str]:
    features: np.ndarray[Any, Any] = data["val_features"]
    found: Decoded = beam_search(model, features, 2, 8, n_best=2, suppress_unk=True)
    texts: list[list[str]] = found.captions(model.idx_to_word)
    drawn = sample(model, features, 8, count=2, temperature=0.8, seed=3)
    assert drawn.ids.shape[:2] == found.ids.shape[:2]
    first: list[str] = [
        group[0] for group in greedy(model, features, 8).captions(model.idx_to_word)
    ]
    said: str | list[str] = decode_captions(model.sample(features, 8), model.idx_to_word)
    assert len(said) == len(first) == len(texts)
    return first


def measure(model: CaptioningRNN, data: dict[str, Any], captions: Sequence[str]) -> None:
    references: list[list[str]] = references_of(data, "val")
    scores: dict[str, float | None] = evaluate_captions(captions, references)
    scorer = CaptionScorer(references)
    cider, of_each = scorer.cider(captions)
    about: dict[str, Any] = diversity(captions)
    nats: float | None = loss_per_word(model, data, "val", limit=10)
    again = Evaluator(data, "val").score(captions)
    print(bleu_1(captions, references), scores["cider"], cider, of_each.mean(), again["bleu_4"])
    print(about["vocabulary_used"], "unknown" if nats is None else f"{nats:.3f}")


def keep(model: CaptioningRNN, run: Path) -> None:
    save_model(run / "kept.npz", model)
    same = load_model(run / "kept.npz")
    checkpoint, damaged = read_newest_checkpoint(run)
    assert checkpoint is not None and not damaged
    print(sorted(checkpoint.about), same.params["Wh"].dtype)
    exports: list[Callable[[], object]] = [
        lambda: save_safetensors(run / "model.safetensors", same),
        lambda: save_onnx(run / "onnx", same),
        lambda: to_torch(same)["rnn.weight_hh_l0"].shape,
    ]
    for export in exports:
        try:
            export()
        except ImportError as missing:
            print(missing)


def describe(run: Path, photographs: list[Path]) -> list[str]:
    """Caption photographs; this needs a run that was trained on features of a known network."""
    captioner = Captioner.load(run, threads=2)
    results: list[Captioned] = captioner(photographs, beam=3, max_length=20)
    best: list[ImageCaption] = [result.captions[0] for result in results]
    for result in captioner.each(photographs, failed=lambda name, error: print(name, error)):
        print(result.name, result.caption)
    return [f"{one.text} ({one.log_prob:.1f})" for one in best]


def main(directory: str, run: str) -> None:
    fastrnn.set_num_threads(1)
    threads: int = fastrnn.get_num_threads()
    version: str = fastrnn.__version__
    print(version, threads, use_layers())
    data = load_coco_data(directory, max_train=None, pca_features=True)
    train_as_in_the_course(data)
    model = train(data, Path(run))
    measure(model, data, caption(model, data))
    keep(model, Path(run))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
