"""The page of the server in a browser, with a mouse, with keys, and on a phone."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="fastrnn[serve] is not installed")
pytest.importorskip("uvicorn", reason="fastrnn[serve] is not installed")
pytest.importorskip("python_multipart", reason="fastrnn[serve] is not installed")
if browser.PROGRAM is None:
    pytest.skip("Chromium is not installed", allow_module_level=True)

from serve_setup import Network, caption, make_describer, picture, serving

from fastrnn.explain import Saliency
from fastrnn.serve.app import make_app
from fastrnn.serve.limits import Limits

LIMITS = Limits(upload_bytes=300_000)
MARKUP = "<img src=x onerror=\"document.title='taken'\">"


def explain(image, caption, method, steps, gone):
    """Maps that differ: the k-th word's has a bright square in the k-th column."""
    words = caption.split()
    maps = np.zeros((len(steps), 16, 16), np.float32)
    for row, k in enumerate(steps):
        maps[row, 4:8, 2 * k % 16 : 2 * k % 16 + 2] = -3.0 if method == "plain" else 0.1
    return Saliency(maps, [words[k] for k in steps], np.zeros((16, 16, 3)), steps, words)


@pytest.fixture(scope="module")
def chromium():
    driven = browser.Browser()
    yield driven
    driven.close()


@pytest.fixture(scope="module")
def describer():
    made = make_describer(explain)
    # Words are text, whatever they look like.
    words = made.captioner.model.idx_to_word
    words[words.index("dog") if isinstance(words, list) else 6] = MARKUP
    made.captioner.model.word_to_idx[MARKUP] = 6
    return made


@pytest.fixture(scope="module")
def port(describer):
    with serving(make_app(describer, limits=LIMITS), LIMITS) as port:
        yield port


@pytest.fixture
def page(chromium, port, tmp_path):
    chromium.look(1280, False)
    chromium.visit(f"http://127.0.0.1:{port}/")
    wait(chromium, "document.getElementById('about').textContent !== ''")
    chromium.complaints.clear()
    yield chromium
    chromium.send("Emulation.setTouchEmulationEnabled", enabled=False)
    assert chromium.run("document.title") == "Caption a picture", "a word's markup has run"


def wait(chromium: browser.Browser, true: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not chromium.run(true):
        assert time.monotonic() < end, true
        time.sleep(0.01)


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def choose(chromium: browser.Browser, path: Path, field: str = "#file") -> None:
    """Choose a file, as in the dialogue that the button opens."""
    root = chromium.send("DOM.getDocument")["root"]["nodeId"]
    node = chromium.send("DOM.querySelector", nodeId=root, selector=field)["nodeId"]
    chromium.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def text(chromium: browser.Browser, selector: str) -> str:
    return chromium.run(f"document.querySelector({json.dumps(selector)}).innerText")


def settled(chromium: browser.Browser, name: str) -> None:
    """Wait until the captions of a file are shown."""
    wait(
        chromium,
        "!document.body.classList.contains('busy') && !document.getElementById('result').hidden "
        f"&& document.getElementById('name').textContent.startsWith({json.dumps(name + ',')})",
    )


def words_shown(chromium: browser.Browser) -> list[list[str]]:
    return chromium.run(
        "[...document.querySelectorAll('.words')].map((list) =>"
        " [...list.children].map((word) => word.firstChild.textContent))"
    )


def words_answered(answer: dict) -> list[list[str]]:
    return [
        [{"<END>": "end", "<UNK>": "unknown word"}.get(w["word"], w["word"]) for w in one["words"]]
        for one in answer["captions"]
    ]


def test_a_picture_is_chosen(page, port, tmp_path):
    file = picture((10, 200, 10), (60, 40))
    choose(page, write(tmp_path, "mine.png", file))
    settled(page, "mine.png")
    _, answer = caption(port, file, beam=3, n_best=3, alternatives=5)
    assert words_shown(page) == words_answered(answer)
    assert answer["caption"] in text(page, "#status")
    assert "60 × 40" in text(page, "#name")
    assert "square in the middle" in text(page, "#name")
    shown = page.run("[...document.querySelectorAll('.words')[0].children].map((e) => e.ariaLabel)")
    for label, word in zip(shown, answer["captions"][0]["words"], strict=True):
        assert abs(float(label.split(", ")[-1].rstrip("%")) / 100 - word["probability"]) < 0.006
    assert page.complaints == []


def test_a_picture_is_dropped(page, tmp_path):
    path = str(write(tmp_path, "dropped.png", picture()))
    data = {"items": [], "files": [path], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        page.send("Input.dispatchDragEvent", type=kind, x=300, y=500, data=data)
    assert page.run("document.body.classList.contains('dragging')")
    page.send("Input.dispatchDragEvent", type="drop", x=300, y=500, data=data)
    settled(page, "dropped.png")
    assert not page.run("document.body.classList.contains('dragging')")


def paste(chromium: browser.Browser, file: bytes | None) -> None:
    chromium.run(
        "(() => { const data = new DataTransfer();"
        f"const bytes = new Uint8Array({json.dumps(list(file or b''))});"
        f"if (bytes.length) data.items.add(new File([bytes], 'pasted.png', {{type: 'image/png'}}));"
        "document.body.dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); })()"
    )


def test_a_picture_is_pasted(page):
    paste(page, None)
    assert "no picture" in text(page, "#fault")
    paste(page, picture())
    settled(page, "pasted.png")
    assert page.run("document.getElementById('fault').hidden")


def test_a_word_shows_what_else_it_could_have_been(page, port, tmp_path):
    file = picture((10, 200, 10))
    choose(page, write(tmp_path, "a.png", file))
    settled(page, "a.png")
    assert text(page, "#step-title") == "Choose a word"
    page.click(".captions li:nth-child(2) .word:nth-child(1)")
    word = caption(port, file, beam=3, n_best=3, alternatives=5)[1]["captions"][1]["words"][0]
    rows = page.run(
        "[...document.querySelectorAll('#alternatives li')].map((li) =>"
        " [li.children[0].textContent, parseFloat(li.children[2].textContent),"
        " li.querySelector('.bar span').offsetWidth / li.querySelector('.bar').offsetWidth])"
    )
    told = word["alternatives"]
    if word["word"] not in [one["word"] for one in told]:
        told = [*told, word]
    assert len(rows) == len(told) >= 5
    for (name, percent, width), one in zip(rows, told, strict=True):
        assert name == {"<END>": "end", "<UNK>": "unknown word"}.get(one["word"], one["word"])
        assert abs(percent / 100 - one["probability"]) < 0.006
        assert abs(width - one["probability"]) < 0.02
    pressed = "[...document.querySelectorAll('.word[aria-pressed=true]')].length"
    assert page.run(pressed) == 1
    page.click(".captions li:nth-child(2) .word:nth-child(1)")
    assert page.run(pressed) == 0


def test_everything_works_without_a_mouse(page, tmp_path):
    order = []
    for _ in range(4):
        page.press("Tab")
        order.append(page.run("document.activeElement.id"))
    assert order[0] == "choose"
    assert order[-2:] == ["beam", "count"]
    choose(page, write(tmp_path, "a.png", picture((10, 200, 10))))
    settled(page, "a.png")
    page.run("document.querySelector('.captions .word').focus()")
    page.press("ArrowRight")
    assert (
        page.run("[...document.activeElement.parentNode.children].indexOf(document.activeElement)")
        == 1
    )
    page.press("Enter")
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.press("ArrowLeft")
    assert page.run("document.activeElement.previousElementSibling") is None
    unnamed = page.run(
        "[...document.querySelectorAll('input, select, button')]"
        ".filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length"
    )
    assert unnamed == 0
    assert page.run("document.getElementById('status').getAttribute('role')") == "status"
    assert page.run("document.getElementById('fault').getAttribute('role')") == "alert"


CANVAS = """(() => {
  const c = document.getElementById('map');
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  const seen = [];
  for (let k = 0; k < c.width * c.height; k += 1) if (d[4 * k + 3] > 127) seen.push(k);
  return [c.width, c.height, seen];
})()"""


@pytest.mark.parametrize("size", [(90, 40), (40, 90)])
def test_a_map_lies_over_what_the_network_read(page, tmp_path, size):
    choose(page, write(tmp_path, "a.png", picture((10, 200, 10), size)))
    settled(page, "a.png")
    step = 2
    page.click(f".captions li:nth-child(3) .word:nth-child({step + 1})")
    assert page.run("document.getElementById('map').hidden")
    page.click("#show-map")
    wait(page, "!document.getElementById('map').hidden")
    width, height, seen = page.run(CANVAS)
    assert (width, height) == (16, 16)
    assert seen == [16 * y + x for y in range(4, 8) for x in (2 * step, 2 * step + 1)]
    places = page.run(
        "['shown', 'map'].map((id) => { const r = document.getElementById(id)"
        ".getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2, r.width,"
        " r.height]; })"
    )
    picture_place, map_place = np.array(places)
    assert np.allclose(picture_place[:2], map_place[:2], atol=1)
    assert np.allclose(map_place[2:], picture_place[2:].min(), atol=1)
    same = json.dumps(json.dumps([width, height, seen], separators=(",", ":")))
    # It is seen: bright where the map is, and the rest of the picture is dimmed.
    page.run("document.getElementById('shown').scrollIntoView()")
    left, top, side = page.run(
        "(() => { const r = document.getElementById('map').getBoundingClientRect();"
        "return [r.left, r.top, r.width]; })()"
    )
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), float)

    def light(x: float, y: float) -> float:
        return shot[int(top + side * y / 16), int(left + side * x / 16)]

    assert light(2 * step + 1, 6) > 1.5 * max(light(2 * step + 1, 12), light(12, 6))
    # Another word has another map; that of the first is not asked for again.
    page.click(".captions li:nth-child(3) .word:nth-child(1)")
    wait(page, f"JSON.stringify({CANVAS}) !== {same}")
    page.requests.clear()
    page.click(f".captions li:nth-child(3) .word:nth-child({step + 1})")
    wait(page, f"JSON.stringify({CANVAS}) === {same}")
    assert page.requests == []
    page.click(".captions li:nth-child(3) .word:nth-child(1)")
    page.run(
        "(() => { const e = document.getElementById('method'); e.value = 'plain';"
        "e.dispatchEvent(new Event('change')); })()"
    )
    wait(page, "document.getElementById('map-about').innerText.startsWith('Bright')")
    assert page.run(CANVAS)[2] == [16 * y + x for y in range(4, 8) for x in (0, 1)]
    page.click("#show-map")
    assert page.run("document.getElementById('map').hidden")
    assert page.complaints == []


def test_without_maps_the_page_says_why(chromium, tmp_path):
    describer = make_describer("Maps need the moon.")
    with serving(make_app(describer, limits=LIMITS), LIMITS) as port:
        chromium.visit(f"http://127.0.0.1:{port}/")
        choose(chromium, write(tmp_path, "a.png", picture()))
        settled(chromium, "a.png")
        assert text(chromium, "#no-maps") == "Maps need the moon."
        assert chromium.run("document.getElementById('maps').hidden")
        chromium.click(".word")
        assert chromium.run("document.querySelectorAll('#alternatives li').length") >= 5


def test_faults_are_shown_and_the_next_picture_is_captioned(page, tmp_path):
    choose(page, write(tmp_path, "a.png", picture()))
    settled(page, "a.png")
    choose(page, write(tmp_path, "text.jpg", b"no picture"))
    wait(page, "!document.getElementById('fault').hidden")
    assert "cannot be read as an image" in text(page, "#fault")
    assert page.run("document.getElementById('result').hidden")
    page.requests.clear()
    choose(page, write(tmp_path, "large.png", b"x" * 300_001))
    wait(page, "document.getElementById('fault').innerText.includes('large.png')")
    assert page.requests == []  # it is not sent
    choose(page, write(tmp_path, "b.png", picture()))
    settled(page, "b.png")
    assert page.run("document.getElementById('fault').hidden")


def test_formats_that_the_browser_does_not_show_are_captioned(page, tmp_path):
    choose(page, write(tmp_path, "a.tiff", picture(kind="TIFF")))
    wait(page, "!document.getElementById('unshown').hidden")
    assert page.run("document.querySelectorAll('.words').length") == 3


def test_other_decoding_asks_again(page, port, tmp_path):
    file = picture((10, 200, 10))
    choose(page, write(tmp_path, "a.png", file))
    settled(page, "a.png")
    for beam, n_best in ((5, 5), (1, 1), (3, 1)):
        for name, value in (("beam", beam), ("count", n_best)):
            page.run(
                f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}';"
                "e.dispatchEvent(new Event('change')); })()"
            )
        expected = words_answered(caption(port, file, beam=beam, n_best=n_best)[1])
        wait(page, f"document.querySelectorAll('.words').length === {n_best}")
        wait(page, "!document.body.classList.contains('busy')")
        assert words_shown(page) == expected


def test_the_last_picture_is_what_is_shown(chromium, tmp_path):
    """An answer that comes late does not take the place of a later picture's."""

    class Slow(Network):
        go = threading.Event()

        def features(self, batch):
            assert self.go.wait(20)
            return super().features(batch)

    describer = make_describer()
    describer.captioner.network = Slow()
    with serving(make_app(describer, limits=LIMITS), LIMITS) as port:
        chromium.visit(f"http://127.0.0.1:{port}/")
        for name in ("first", "second", "third"):
            choose(chromium, write(tmp_path, f"{name}.png", picture()))
            time.sleep(0.05)
        assert text(chromium, "#status") == "Captioning…"
        Slow.go.set()
        settled(chromium, "third.png")
        time.sleep(0.1)
        assert text(chromium, "#name").startswith("third.png")


def test_a_server_that_has_gone_is_told(chromium, tmp_path):
    with serving(make_app(make_describer(), limits=LIMITS), LIMITS) as port:
        chromium.visit(f"http://127.0.0.1:{port}/")
    choose(chromium, write(tmp_path, "a.png", picture()))
    wait(chromium, "!document.getElementById('fault').hidden")
    assert "still running" in text(chromium, "#fault")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_can_be_read_and_touched(page, port, tmp_path, width, dark):
    phone = width < 500
    page.look(width, dark)
    page.send("Emulation.setTouchEmulationEnabled", enabled=phone)
    page.visit(f"http://127.0.0.1:{port}/")
    wait(page, "document.getElementById('about').textContent !== ''")
    address = f"http://127.0.0.1:{port}"
    assert {url.removeprefix(address) for url in page.requests} == {
        "/", "/page.css", "/page.js", "/about"
    }  # fmt: skip
    choose(page, write(tmp_path, "a_name_that_is_long_" * 5 + ".png", picture((10, 200, 10))),
           "#camera" if phone else "#file")  # fmt: skip
    wait(page, "!document.getElementById('result').hidden")
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.run("document.querySelectorAll('.word')[1].click()")
    assert page.run("document.documentElement.scrollWidth") == width
    seen, poor = page.run(browser.CONTRAST)
    assert seen > 30
    assert poor == []
    small = page.run(
        "[...document.querySelectorAll('button, select, .check, summary')]"
        ".filter((e) => e.checkVisibility())"
        ".filter((e) => e.offsetHeight < 40 || e.offsetWidth < 36).map((e) => e.outerHTML)"
    )
    assert small == []
    assert page.complaints == []
