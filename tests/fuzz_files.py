"""Fuzz every function that reads files, guided by code coverage.

    python tests/fuzz_files.py [READER ...] [--seconds N] [--seed N]    fuzz; the time is for each
    python tests/fuzz_files.py READER --file FILE                       read one file again
    python tests/fuzz_files.py --list                                   the readers

A reader returns something that holds together, or raises one of the exceptions it documents, with
one line that names the file. All else is a fault: another exception, more than 5 seconds, more
than 500 MB, a crash of the interpreter, something that comes from another file, a file written
elsewhere, a program started. HDF5 reads in the fuzzer's process, where its own faults end that; a
file that shows one is read again as users read it, and counts as "of HDF5 alone" if that holds.
Each reader is fuzzed in a process of its own, which is begun anew after a crash.

Without atheris (it has wheels for Linux on x86-64) the same mutations are drawn at random from the
seeds, and what they lead to is not followed up.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
from PIL import Image

if __name__ == "__main__" and importlib.util.find_spec("atheris"):
    import atheris

    own_modules = atheris.instrument_imports(
        include=["fastrnn"],
        exclude=[f"fastrnn.reference{name}" for name in ("", ".classifier", ".decoding", ".layers",
                 ".optim", ".random", ".rnn_layers", ".solver")],
    )  # fmt: skip
else:
    atheris = None
    own_modules = contextlib.nullcontext()

with contextlib.redirect_stderr(io.StringIO()), own_modules:
    import fastrnn.checkpoint
    import fastrnn.coco_utils
    import fastrnn.data.annotations
    import fastrnn.data.feature_files
    import fastrnn.data.fetch
    import fastrnn.data.h5
    import fastrnn.data.h5_process
    import fastrnn.data.pca
    import fastrnn.data.references
    import fastrnn.data.scenes.dataset
    import fastrnn.files
    import fastrnn.image_utils
    import fastrnn.report
    import fastrnn.runlock
    import fastrnn.runs
    import fastrnn.training

from coco_layout import PCA_DIM, WORDS, write_layout
from file_mutation import (
    CANARY,
    Mutate,
    h5_mutator,
    json_mutator,
    mutate_bytes,
    mutate_text,
    npz_mutator,
    write_compact,
)

from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.data.scenes.draw import make_scene
from fastrnn.data.scenes.language import caption_is_true
from fastrnn.extras import install_command

SECONDS = 5
"""Processor time that a file may take."""
PATIENCE = 60
"""Seconds after which a reader counts as hanging."""
MEMORY = 500 << 20
ADDRESSES = 1 << 30
"""Memory above that of the process at the start; protects the machine."""


class Fault(Exception):
    """A fault of a reader."""


class Reader:
    """A function of the package that reads files of one kind.

    Attributes
    ----------
    path : Path
        Where the file is to be read from.
    seeds : list of bytes
        Files as the package and others write them; they are read.
    strange : list of bytes
        Other files to begin with.
    mutate : callable
        Takes bytes and a `random.Random`, returns other bytes.
    """

    refusals: tuple[type[Exception], ...] = (ValueError, OSError)
    largest = 1 << 13
    """Largest size of a file in bytes."""
    mutate: Mutate

    def __init__(self, place: Path) -> None:
        self.place = place
        self.path = place / "file"
        self.seeds: list[bytes] = []
        self.strange: list[bytes] = []
        self.prepare()

    def prepare(self) -> None:
        raise NotImplementedError

    def read(self) -> Any:
        """Read the file, and check the result."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """A message names the file if it contains any of these."""
        return [str(self.path)]


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Fault(what)


# -- the layout


class Captions(Reader):
    """coco2014_captions.h5"""

    largest = 1 << 16
    file = "coco2014_captions.h5"
    datasets = ("train_captions", "train_image_idxs", "val_captions", "val_image_idxs")

    def prepare(self) -> None:
        self.layout = self.place / "data"
        arrays = write_layout(self.layout)
        self.path = self.layout / self.file
        self.add_h5_seeds({name: arrays[self.source_of(name)] for name in self.datasets})

    def names(self) -> list[str]:
        # If two files do not match, the message may name the other file.
        return [f"{self.layout}{os.sep}"]

    def source_of(self, name: str) -> str:
        return name

    def add_h5_seeds(self, arrays: dict[str, np.ndarray]) -> None:
        self.seeds.append(self.path.read_bytes())
        for options in (
            {"compression": "gzip", "shuffle": True}, {"chunks": True, "fletcher32": True},
        ):  # fmt: skip
            with h5py.File(self.place / "seed.h5", "w") as file:
                for name, array in arrays.items():
                    file.create_dataset(name, data=array, **options)
            self.seeds.append((self.place / "seed.h5").read_bytes())
        for version in ("earliest", "latest"):
            with h5py.File(self.place / "seed.h5", "w", libver=version) as file:
                for name, array in arrays.items():
                    if version == "earliest":
                        write_compact(file, name, array)
                    else:
                        file[name] = array
            self.seeds.append((self.place / "seed.h5").read_bytes())
        self.mutate = h5_mutator(arrays, self.place)

    def read(self) -> None:
        data = fastrnn.data.layout.read_captioning_directory(self.layout)
        for name, value in data.items():
            if isinstance(value, np.ndarray):
                require(value.dtype.isnative, f"{name} has the bytes of another machine")
                if value.dtype.kind in "iuf":
                    require(not (value == CANARY).any(), f"{name} comes from another file")
        for split in ("train", "val"):
            captions = data[f"{split}_captions"]
            images = data[f"{split}_image_idxs"]
            require(len(captions) == len(images), "as many captions as images")
            require(not captions.size or 0 <= captions.min() <= captions.max() < len(WORDS), "ids")
            if len(captions):
                drawn, features, urls = fastrnn.coco_utils.sample_coco_minibatch(data, 3, split)
                require(len(drawn) == len(features) == len(urls) == 3, "a batch")
                fastrnn.coco_utils.decode_captions(drawn, data["idx_to_word"])


class Features(Captions):
    """train2014_vgg16_fc7_pca.h5"""

    file = "train2014_vgg16_fc7_pca.h5"
    datasets = ("features",)

    def source_of(self, name: str) -> str:
        return "train_features_pca"


class Vocabulary(Captions):
    """coco2014_vocab.json"""

    largest = Reader.largest
    file = "coco2014_vocab.json"

    def prepare(self) -> None:
        super().prepare()
        # The word of an id that is in no caption can be anything.
        self.seeds = [self.path.read_bytes(), b"\xef\xbb\xbf" + self.path.read_bytes()]
        self.mutate = json_mutator(["idx_to_word", "word_to_idx", *WORDS])


class Urls(Captions):
    """train2014_urls.txt"""

    largest = Reader.largest
    file = "train2014_urls.txt"

    def prepare(self) -> None:
        super().prepare()
        more = ["http://a.b/c.jpg", "data:,a", "images/a.png", "", "file:///a%20b.png", "C:\\a"]
        self.seeds = [self.path.read_bytes(), "\n".join(more * 2).encode()]
        self.mutate = mutate_text

    def read(self) -> None:
        data = fastrnn.data.layout.read_captioning_directory(self.layout)
        for url in data["train_urls"].tolist():
            require("\n" not in url and "\0" not in url, "a URL of several lines")
            fastrnn.report.find_picture(url, self.layout)


# -- npz


def small_models() -> list[CaptioningRNN]:
    ids = {word: idx for idx, word in enumerate(WORDS)}
    return [
        fastrnn.checkpoint.seeded_model(ids, PCA_DIM, 4, 5, cell, dtype)
        for cell, dtype in (("lstm", np.float32), ("rnn", np.float64))
    ]


class Model(Reader):
    """best_model.npz"""

    largest = 1 << 16

    def prepare(self) -> None:
        for model in small_models():
            model.save(self.path)
            self.seeds.append(self.path.read_bytes())
        self.mutate = npz_mutator(sealed=True)

    def read(self) -> None:
        model = fastrnn.checkpoint.load_model(self.path)
        words = len(model.word_to_idx)
        whole = sorted(model.word_to_idx.values()) == list(range(words))
        width, hidden = model.params["W_proj"].shape
        if "<START>" in model.word_to_idx and whole and width and hidden:
            ids = model.sample(np.ones((2, width), model.params["W_proj"].dtype), 3)
            require(bool((ids >= 0).all() and (ids < words).all()), "word ids")
            fastrnn.coco_utils.decode_captions(ids, model.idx_to_word)
        model.save(self.place / "again.npz")
        fastrnn.checkpoint.load_model(self.place / "again.npz")


class Checkpoint(Reader):
    """checkpoints/step-00000002.npz, and resuming from it"""

    largest = 1 << 16

    def prepare(self) -> None:
        write_layout(self.place / "data")
        self.data = fastrnn.training.read_training_data(self.place / "data")
        self.run = self.place / "run"
        self.path = fastrnn.checkpoint.checkpoint_path(self.run, 2)
        for model, options in zip(small_models(), ({}, {"weight_average": 0.9}), strict=True):
            shutil.rmtree(self.run, ignore_errors=True)
            config = fastrnn.training.TrainConfig(epochs=2, val_images=2, **options)
            settings = {"data": str(self.place / "data"), "bias_start": "frequencies",
                        "forget_bias": 1.0, "embed_scale": 0.1}  # fmt: skip
            trainer = fastrnn.training.Trainer(
                model, self.data, config, run=self.run, settings=settings
            )
            with contextlib.redirect_stdout(None):
                trainer.fit()
            self.seeds.insert(0, self.path.read_bytes())
        fastrnn.checkpoint.checkpoint_path(self.run, 1).unlink()
        about = json.loads(str(fastrnn.files.read_sealed(self.path)["training/about"]))
        self.mutate = npz_mutator(True, [*about, *about["best"], *about["config"]])

    def read(self) -> None:
        found = fastrnn.checkpoint.read_checkpoint(self.path)
        json.dumps(found.about)
        require(isinstance(found.to_arrays(), dict), "arrays")
        try:
            trainer = fastrnn.training.Trainer.resume(self.run, self.data)
        except ValueError as error:
            # It compares the settings with the checkpoint, and names the differences.
            require("\n" not in str(error), "one line")
        else:
            require(trainer.step <= 2, "a step that was not done")
            fastrnn.report.draw_loss(trainer.history[:3])


class Components(Reader):
    """pca.npz"""

    def prepare(self) -> None:
        x = np.random.default_rng(0).standard_normal((20, 6))
        fastrnn.data.pca.PCA.fit(x, 3).save(self.path)
        self.seeds = [self.path.read_bytes()]
        self.mutate = npz_mutator(sealed=False)

    def read(self) -> None:
        pca = fastrnn.data.pca.PCA.load(self.path)
        if pca.components.size < 1000:
            with np.errstate(all="ignore"):
                found = pca.transform(np.ones((2, len(pca.mean))))
            require(found.shape == (2, len(pca.components)), "features")


# -- JSON


class Settings(Reader):
    """settings.json, and the page that shows it"""

    file = "settings.json"
    lines = False

    def prepare(self) -> None:
        (self.place / "trained").mkdir()
        trained = Checkpoint(self.place / "trained")
        self.layout = trained.place / "data"
        self.run = self.place / "run"
        self.run.mkdir()
        names = set()
        for name in ("settings.json", "history.jsonl", "metrics.json"):
            if name == "metrics.json":
                content = json.dumps({"epoch": 2, "val_loss": 1.5, "images": 3, "bleu_1": 0.1,
                                      "distinct_captions": 2, "true_share": 0.5})  # fmt: skip
            else:
                content = trained.run.joinpath(name).read_text()
            (self.run / name).write_text(content)
            for line in content.splitlines() if name.endswith("l") else [content]:
                found = json.loads(line)
                names.update(found, *(value for value in found.values() if type(value) is dict))
        self.add()
        self.path = self.run / self.file
        self.seeds = [self.path.read_bytes()]
        if self.file == "settings.json":  # also as older versions wrote it, without sections
            flat = fastrnn.runs.read_settings(self.run)
            self.seeds.append(json.dumps(flat).encode())
        self.mutate = json_mutator(sorted({*names, "max_train", "raw_features", "bias_start"}),
                                   self.lines)  # fmt: skip

    def add(self) -> None:
        """Add a file to the run."""

    def read(self) -> None:
        self.look()
        report = fastrnn.report.Report(self.run)
        report.read()
        require("</html>" in fastrnn.report.write_report(self.run).read_text("utf-8"), "a page")

    def names(self) -> list[str]:
        # A directory without settings is not a run directory.
        return [str(self.path), f"{self.run}: "]

    def look(self) -> None:
        run = fastrnn.training.read_run(self.run)
        data = run.read_data(self.layout)
        sizes = [run.settings.get(name) for name in ("hidden_dim", "wordvec_dim")]
        if all(type(size) is not int or size < 100 for size in sizes):
            run.start_model(data)


class Rows(Settings):
    """train_rows.json, and the captions that it names"""

    file = "train_rows.json"

    def add(self) -> None:
        fastrnn.runs.write_rows(self.run, [0, 3, 3, 1])

    def names(self) -> list[str]:
        return [*super().names(), str(self.layout)]  # rows that its captions do not have

    def read(self) -> None:
        self.look()


class History(Settings):
    """history.jsonl, and the page that shows it"""

    file = "history.jsonl"
    lines = True

    def prepare(self) -> None:
        super().prepare()
        self.drawn = 0

    def look(self) -> None:
        history = fastrnn.report.read_history(self.path)
        self.drawn += 1
        if self.drawn % 100 == 0:  # matplotlib is slow
            fastrnn.report.draw_loss(history)


class Metrics(Settings):
    """metrics.json, and the page that shows it"""

    file = "metrics.json"

    def look(self) -> None:
        pass


class References(Reader):
    """val_references.json in its three forms"""

    urls = ("images/a.png", "http://a.b/b.jpg", "c.png")

    def prepare(self) -> None:
        texts = [["a cat", "a dog on the mat"], ["a sofa"], []]
        coco = {
            "images": [{"id": k, "file_name": url.rsplit("/")[-1], "coco_url": url}
                       for k, url in enumerate(self.urls)],
            "annotations": [{"id": 9, "image_id": k, "caption": text}
                            for k, known in enumerate(texts) for text in known],
        }  # fmt: skip
        for found in (texts, dict(zip(self.urls, texts, strict=True)), coco):
            self.seeds.append(json.dumps(found).encode())
        self.mutate = json_mutator(
            ["images", "annotations", "id", "file_name", "coco_url", "flickr_url", "image_id",
             "caption", "a.png", "b.jpg"]
        )  # fmt: skip

    def read(self) -> None:
        found = fastrnn.data.references.read_references(self.path, self.urls)
        require(len(found) == len(self.urls), "a list for each image")
        require(all(isinstance(text, str) for texts in found for text in texts), "texts")
        "".join(text for texts in found for text in texts).encode("utf-8")


class Scenes(Reader):
    """val_scenes.json"""

    def prepare(self) -> None:
        self.path = self.place / "val_scenes.json"
        scenes = [make_scene(np.random.default_rng(seed)).to_json() for seed in range(3)]
        self.seeds = [json.dumps(scenes).encode()]
        self.mutate = json_mutator([*scenes[0][0], "circle", "red", "small"])

    def read(self) -> None:
        for scene in fastrnn.data.scenes.dataset.read_scenes(self.place) or []:
            for caption in ("there is a red circle", "two things", ""):
                scene.to_json()
                caption_is_true(caption, scene)


class Coco(Reader):
    """Annotations in JSON: COCO's, Karpathy's, records"""

    def prepare(self) -> None:
        self.path = self.place / "captions.json"
        images = [
            {"id": 9, "file_name": "a.jpg", "coco_url": "http://c/9.jpg"},
            {"id": 25, "file_name": "b.jpg", "flickr_url": "http://f/25.jpg"},
        ]
        annotations = [
            {"image_id": 25, "id": 1, "caption": "Two giraffes."},
            {"image_id": 9, "id": 2, "caption": "A meal."},
        ]
        sentences = [{"tokens": ["a", "man"], "raw": "A man.", "sentid": 7}]
        karpathy = [
            {
                "filepath": "val2014",
                "filename": "a.jpg",
                "cocoid": 391,
                "split": "test",
                "sentences": sentences,
            },
            {"filename": "b.jpg", "split": "restval", "sentences": []},
        ]
        records = [
            {"file_path": "a.jpg", "captions": ["A", "B"]},
            {"image": "b.jpg", "caption": "C", "split": "val"},
        ]
        for found in (
            {"images": images, "annotations": annotations, "info": {"year": 2014}},
            {"images": karpathy, "dataset": "coco"}, records,
        ):  # fmt: skip
            self.seeds.append(json.dumps(found).encode())
        names = {
            key for one in [*images, *annotations, *sentences, *karpathy, *records] for key in one
        }
        self.mutate = json_mutator(sorted({*names, "images", "annotations"}))

    def read(self) -> None:
        for tokens in (False, True):
            read = fastrnn.data.annotations.read_annotations(self.path, tokens=tokens)
            names = [image.name for image in read.images]
            require(len(set(names)) == len(names), "every image once")
            for image in read.images:
                require(image.split in (None, "train", "val", "test"), "a split")
                require(all(type(text) is str for text in image.captions), "captions")
                for text in (image.name, image.url or "", *image.captions):
                    require("\0" not in text, "no null characters")
                    text.encode("utf-8")
                require("\n" not in image.name + (image.url or ""), "a name in one line")


class Lines(Coco):
    """Annotations in lines: CSV, TSV, JSON Lines, token files of Flickr"""

    def prepare(self) -> None:
        super().prepare()
        self.path = self.place / "captions.txt"
        self.seeds = [
            b'image,caption,split\na.jpg,"A ""big"" dog, here .",train\nb.jpg,"two\nlines",dev\n',
            b"image_name| comment_number| comment\na.jpg| 0| Two young guys\n",
            b'image\tcaption\na.jpg\t"Stop" says a sign\nb.jpg\t"say ""hi"""\n',
            b"a.jpg#0\tA child .\na.jpg#1\tA girl .\r\nb.jpg#0\tA \xc3\xa9 .\n",
            b'{"image": "a.jpg", "caption": "A cat"}\n{"image": 3, "captions": ["A", "B"]}\n',
        ]
        self.mutate = mutate_text


class Vectors(Reader):
    """Features in an npy file"""

    def prepare(self) -> None:
        self.path = self.place / "x.npy"
        for array in (np.ones((3, 2), np.float32), np.asfortranarray(np.ones((2, 3)))):
            np.save(self.path, array)
            self.seeds.append(self.path.read_bytes())
        self.mutate = mutate_bytes

    def read(self) -> None:
        found = fastrnn.data.feature_files.FeatureFiles([self.path])
        rows = 0
        for start, block in found.blocks():
            require(start == rows and block.shape[1] == found.width, "rows")
            require(block.dtype == np.float32 and bool(np.isfinite(block).all()), "numbers")
            rows += len(block)
        require(rows == found.count, "all rows")


class Table(Vectors):
    """Features in an npz file"""

    def prepare(self) -> None:
        self.path = self.place / "x.npz"
        x = np.ones((3, 2), np.float32)
        for arrays in ({"features": x, "names": np.array(["a", "b", "c"])}, {"a": x[0], "b": x[1]}):
            np.savez(self.path, **arrays)
            self.seeds.append(self.path.read_bytes())
        self.mutate = npz_mutator(sealed=False)


class Archive(Reader):
    """A zip archive that was fetched"""

    def prepare(self) -> None:
        self.path = self.place / "archive.zip"
        for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(self.path, "w", compression) as content:
                content.writestr("data/a.txt", b"a" * 50)
                content.writestr("data/b/", b"")
                content.writestr("data/b/c.txt", bytes(range(60)))
            self.seeds.append(self.path.read_bytes())
        self.mutate = mutate_bytes

    def read(self) -> None:
        out = self.place / "unpacked"
        # By whole paths, which the watch knows as ours.
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        out.mkdir(exist_ok=True)
        fastrnn.data.fetch.unpack(self.path, out, max_size=1 << 20)
        files = [path for path in out.rglob("*") if not path.is_dir()]
        require(bool(files) and all(path.is_file() for path in files), "plain files")
        require(not any(path.is_symlink() for path in out.rglob("*")), "no links")
        require(sum(path.stat().st_size for path in files) <= 1 << 20, "a bound")


class Holder(Reader):
    """.lock-holder of a run that another process uses"""

    refusals = (fastrnn.runlock.RunInUseError,)

    def prepare(self) -> None:
        self.path = self.place / fastrnn.runlock.HOLDER_FILE
        self.lock = fastrnn.runlock.RunLock(self.place)
        self.lock.acquire()
        self.strange = [self.path.read_bytes()]
        self.mutate = json_mutator(["host", "process"])

    def read(self) -> None:
        fastrnn.runlock.RunLock(self.place).acquire()
        raise Fault("two have the lock")

    def names(self) -> list[str]:
        return [str(self.place)]


# -- pictures


class Picture(Reader):
    """A picture: PNG, JPEG, GIF, BMP, TIFF, WebP"""

    def prepare(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        for kind, mode in (
            ("png", "RGB"), ("png", "P"), ("png", "LA"), ("png", "I;16"), ("jpeg", "RGB"),
            ("jpeg", "CMYK"), ("gif", "P"), ("bmp", "RGB"), ("tiff", "RGB"), ("tiff", "F"),
            ("webp", "RGB"), ("ppm", "RGB"), ("eps", "RGB"),
        ):  # fmt: skip
            if mode == "I;16":
                Image.fromarray(pixels[..., 0].astype(np.uint16)).save(self.path, kind)
            else:
                picture.convert(mode).save(self.path, kind)
            # Images that only another program can draw must not be read.
            where = self.strange if kind == "eps" else self.seeds
            where.append(self.path.read_bytes())
        self.mutate = mutate_bytes

    def read(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fastrnn.report.gallery._preview(self.path)
            found = fastrnn.image_utils.load_image(self.path)
            require(found.dtype == np.uint8 and found.ndim in (2, 3), "pixels")
            require(found.ndim == 2 or found.shape[2] in (3, 4), "channels")
            found = fastrnn.image_utils.load_image(self.path, 5)
            require(min(found.shape[:2]) == 5, "a size")


READERS: dict[str, type[Reader]] = {
    kind.__name__.lower(): kind
    for kind in (Captions, Features, Vocabulary, Urls, Model, Checkpoint, Components, Settings,
                 Rows, History, Metrics, References, Scenes, Coco, Lines, Vectors, Table, Archive,
                 Holder, Picture)
}  # fmt: skip


def follow(*modules: types.ModuleType) -> None:
    """Also use the coverage of these modules, which are already loaded."""
    for module in modules:
        owners = [module, *(v for v in vars(module).values() if isinstance(v, type))]
        for owner in owners:
            for value in list(vars(owner).values()):
                value = getattr(value, "fget", value)
                code = getattr(value, "__code__", None)
                if code is not None and code.co_filename == module.__file__:
                    atheris.instrument_func(value)


if atheris is not None:
    headers = sys.modules[np.lib.format.read_magic.__globals__["__name__"]]
    follow(zipfile, json.decoder, headers, h5py._hl.dataset, h5py._hl.group, h5py._hl.files)


# -- one file


class Watch:
    """Records the side effects of a reader; stays installed until the process ends."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)
        self.seen: list[str] = []
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        self.begin()
        sys.addaudithook(self.hook)

    def begin(self) -> None:
        """Forget how much memory earlier files took."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def hook(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, (str, bytes)):
                path = os.fsdecode(path)
                known = (self.place, "/dev/null", "/proc/self/clear_refs")
                if not path.startswith(known) and "matplotlib" not in path:
                    self.seen.append(f"writes to {path}")
        elif event in ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree"):
            if not os.fsdecode(arguments[0]).startswith(self.place):
                self.seen.append(f"{event} of {arguments[0]!r}")
        elif event == "os.posix_spawn" and arguments[0] == sys.executable:
            pass  # HDF5's process
        elif event in (
            "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen",
            "pickle.find_class", "socket.connect", "socket.getaddrinfo",
        ):  # fmt: skip
            self.seen.append(f"{event}{arguments!r:.200}")

    def grown(self) -> int:
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - self.least


def starved(error: BaseException | None) -> bool:
    """Return whether an exception was caused by lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def attempt(reader: Reader, data: bytes, watch: Watch) -> bool:
    """Read `data` with a reader; return whether that worked, or raise a fault."""
    reader.path.write_bytes(data)
    watch.begin()
    since = time.process_time()
    read = True
    try:
        reader.read()
    except Fault:
        raise
    except reader.refusals as error:
        read = False
        message = f"{error} {getattr(error, 'filename', '')}"
        if starved(error):
            raise Fault("runs out of memory") from error
        if not any(name in message for name in reader.names()):
            raise Fault("a message that does not name the file") from error
        if "\n" in message or len(message) > 2000:
            raise Fault("a message that is not one line") from error
    if watch.seen:
        raise Fault(watch.seen.pop())
    if watch.grown() >= MEMORY:
        raise Fault("takes too much memory")
    if time.process_time() - since > SECONDS:
        raise Fault("takes too long")
    return read


# -- many files


class Tally:
    """Counters that survive the process: files tried, files read, and its current state."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 17)

    def add(self, read: bool) -> None:
        tried, were_read = self.counts()
        self.shared[:16] = struct.pack("<QQ", tried + 1, were_read + read)

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """While a file is made: HDF5 may crash over what it is asked to write, too."""
        self.shared[16] = 1
        try:
            yield
        finally:
            self.shared[16] = 0

    def counts(self) -> tuple[int, int]:
        return struct.unpack("<QQ", self.shared[:16])


def where(error: BaseException) -> str:
    """Return the identity of a fault: what is wrong, and the innermost line of the package."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    package = os.sep + "fastrnn" + os.sep
    ours = [f for f in frames if package in f.filename and "tests" not in f.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "-"
    about = str(error).split("/")[0][:40] if isinstance(error, Fault) else ""
    return f"{type(error).__name__} {about} ({type(cause).__name__} at {place})"


def keep(faults: Path, name: str, data: bytes, about: str, details: str) -> None:
    """Keep the file of a fault, once for each kind of fault."""
    path = faults / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:10]}"
    if not path.exists():
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{about}\n\n{details}")


def fuzz(name: str, place: Path, seconds: float, seed: int, faults: Path, tally: Tally) -> None:
    """Fuzz a reader for some time; the process ends with it."""
    reader = READERS[name](place)
    corpus = place / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(reader.seeds + reader.strange):
        (corpus / f"seed{number}").write_bytes(data)
    watch = Watch(place)
    fastrnn.data.h5.HAS_PROCESSES = False  # the fuzzer watches this process
    warnings.simplefilter("ignore")
    for data in reader.seeds:
        if not attempt(reader, data, watch):
            raise RuntimeError("a seed is not read")

    def one(data: bytes) -> None:
        read = False
        try:
            read = attempt(reader, bytes(data), watch)
        except Exception as error:
            keep(faults, name, bytes(data), where(error), traceback.format_exc())
            watch.seen.clear()
        tally.add(read)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)
        if atheris is not None and rng.random() < 0.1:
            return atheris.Mutate(data, most)
        with tally.making():
            found = reader.mutate(bytes(data), rng)
        return found if len(found) <= most else bytes(data)[:most]

    if atheris is not None:
        options = [
            f"-max_total_time={max(round(seconds), 1)}", f"-seed={seed}", f"-timeout={PATIENCE}",
            f"-max_len={reader.largest}", "-rss_limit_mb=0", "-len_control=0",
            f"-artifact_prefix={place}/", "-reload=0", str(corpus),
        ]  # fmt: skip
        atheris.Setup(["fuzz_files", *options], one, custom_mutator=mutate)
        atheris.Fuzz()
    rng = Random(seed)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        signal.alarm(PATIENCE)
        data = rng.choice(reader.seeds + reader.strange)
        for _ in range(rng.choice([1, 1, 2, 4])):
            data = mutate(data, reader.largest, rng.getrandbits(32))
        (place / "crash-last").write_bytes(data)
        one(data)
    signal.alarm(0)
    (place / "crash-last").unlink(missing_ok=True)


def work_on(name: str, seconds: float, seed: int, faults: Path) -> tuple[int, int]:
    """Fuzz a reader in processes of its own; return how many files were tried, and were read."""
    tally = Tally()
    root = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    place = Path(tempfile.mkdtemp(prefix="fastrnn-fuzz-", dir=root))
    until = time.monotonic() + seconds
    try:
        while (left := until - time.monotonic()) > 0:
            before = tally.counts()[0]
            for old in place.iterdir():  # continue from the files found so far
                if old.name != "corpus":
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            child = os.fork()
            if not child:
                code = 3
                try:
                    log = os.open(place / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                    os.dup2(log, 1)
                    os.dup2(log, 2)
                    os.environ["TMPDIR"] = tempfile.tempdir = str(place)
                    fuzz(name, place, left, seed, faults, tally)
                    code = 0
                except SystemExit as error:
                    code = int(error.code or 0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    with contextlib.suppress(Exception):
                        sys.stderr.flush()
                    os._exit(code)
            status = wait_for(child, left + 2 * PATIENCE)
            if status == 0:
                break
            seed += 1
            log = (place / "log").read_text("utf-8", "replace")
            artefact = next(
                (p for kind in ("crash-*", "timeout-*", "oom-*") for p in place.glob(kind)), None
            )
            if artefact is None and tally.counts()[0] == before and "libFuzzer" not in log:
                raise RuntimeError(f"{name}: its files cannot be made or are not read\n{log}")
            if tally.shared[16]:
                tally.shared[16] = 0
                continue
            data = b"" if artefact is None else artefact.read_bytes()
            about = artefact.name.split("-")[0] if artefact else f"ends with status {status}"
            frames = re.findall(r"^ +#\d+ 0x\w+ +in (\w+)", log, re.M)
            keep(faults, name, data, " ".join([about, *frames[3:9]]), log[-4000:])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for path in faults.glob(f"{name}-*.txt"):
        # What HDF5 does to this process, it may do to its own; exceptions are the reader's.
        process_ends = path.read_text().startswith(("timeout", "crash", "oom", "ends", "Fault"))
        ours = not process_ends or not issubclass(READERS[name], Captions)
        if not ours and stands(name, path.with_suffix("")):
            path.rename(path.with_suffix(".held"))
    return tally.counts()


def stands(name: str, file: Path) -> bool:
    """Whether a reader as users have it reads or refuses a file."""
    command = [sys.executable, __file__, name, "--file", str(file)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def wait_for(child: int, seconds: float) -> int:
    """Wait for a process, and kill it after a timeout; return its status."""
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help="all by default")
    parser.add_argument("--seconds", type=float, default=10, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", type=Path, help="read this file alone")
    parser.add_argument("--faults", type=Path, help="directory for files that show a fault")
    parser.add_argument("--list", action="store_true", help="name the readers")
    given = parser.parse_args()
    for name in given.readers:
        if name not in READERS:
            parser.error(f"no reader {name!r}; expected some of {', '.join(READERS)}")
    if given.list:
        for name, kind in READERS.items():
            print(f"{name:<12} {(kind.__doc__ or '').splitlines()[0]}")
        return 0
    if given.file is not None:
        with tempfile.TemporaryDirectory() as place:
            reader = READERS[given.readers[0]](Path(place))
            signal.alarm(PATIENCE)
            read = attempt(reader, given.file.read_bytes(), Watch(Path(place)))
            print("read" if read else "refused")
        return 0
    faults = given.faults or Path(tempfile.gettempdir()) / f"fastrnn-faults-{os.getpid()}"
    faults.mkdir(parents=True, exist_ok=True)
    if atheris is None:
        how = install_command("fuzz")
        print(f"atheris is not here ({how}): mutations without its guidance")
    print(
        f"{'reader':<12} {'files':>9} {'of them read':>13} {'kinds of fault':>15}"
        f" {'of HDF5 alone':>14}",
        flush=True,
    )
    for name in given.readers or READERS:
        tried, were_read = work_on(name, given.seconds, given.seed, faults)
        found, held = (len([*faults.glob(f"{name}-*.{end}")]) for end in ("txt", "held"))
        print(f"{name:<12} {tried:>9,} {were_read:>13,} {found:>15} {held:>14}", flush=True)
    found = sorted(faults.glob("*.txt"))
    for path in found:
        name = path.name.split("-")[0]
        print(f"\n{name}: {path.read_text().splitlines()[0]}")
        print(f"again with: python tests/fuzz_files.py {name} --file {path.with_suffix('')}")
    if not found:
        with contextlib.suppress(OSError):
            faults.rmdir()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
