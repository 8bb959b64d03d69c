"""The application: a page, what it asks for, and the same for programs."""

from __future__ import annotations

import asyncio
import importlib.resources
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from .. import __version__
from .answers import CaptionAnswer, Fault, SaliencyAnswer
from .describer import (
    METHODS,
    MOST_ALTERNATIVES,
    MOST_BEAM,
    MOST_LENGTH,
    Describer,
    Explained,
    Picture,
    Wanted,
)
from .form import Form, read_form
from .guard import Guard
from .limits import Limits, Refused
from .worker import Worker

T = TypeVar("T")

_SMALL = 1 << 18
"""Bytes that are handled where they are: another thread would take longer."""
_FILES = {
    "/": (["serve/page.html"], "text/html"),
    "/page.css": (["report/page.css", "serve/page.css"], "text/css"),
    "/page.js": (["serve/page.js"], "text/javascript"),
}
"""What the page is made of; it looks like the report of a run."""
_ABOUT = """\
Captions of photographs by a model that was trained with fastrnn.

Pictures are held in memory while they are captioned, and are not stored. An error is answered by
`{"detail": "what is wrong"}`.
"""
_FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "The form is malformed, or a field is out of range"},
    403: {"model": Fault, "description": "The request comes from another site's page"},
    408: {"model": Fault, "description": "The upload is too slow"},
    413: {"model": Fault, "description": "The upload is too large"},
    415: {"model": Fault, "description": "The file cannot be read as a picture"},
    421: {"model": Fault, "description": "The request names another host"},
    503: {"model": Fault, "description": "Too much is waiting; Retry-After says when to try again"},
}


def make_app(
    describer: Describer,
    *,
    limits: Limits | None = None,
    network: bool = False,
) -> Guard:
    """Make the ASGI application of a server.

    Parameters
    ----------
    describer : Describer
    limits : Limits, optional
    network : bool, optional
        Whether other machines may ask. Default False.

    Returns
    -------
    ASGI application
    """
    limits = limits or Limits()
    # Pictures are decoded beside the network. More threads than processors do not help.
    readers = ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "picture")
    captions = Worker[Picture | bytes, dict[str, Any]](
        describer.describe, batch=limits.batch, waiting=limits.waiting, name="captions"
    )
    # Maps take long; captions do not wait for them.
    maps = Worker[Explained, dict[str, Any]](
        lambda _, asked: describer.explain(asked), batch=1, waiting=limits.maps_waiting,
        name="maps",
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        readers.shutdown(wait=False, cancel_futures=True)
        captions.close(limits.stop_seconds)
        maps.close(limits.stop_seconds)

    app = FastAPI(
        title="fastrnn serve", version=__version__, description=_ABOUT, lifespan=lifespan,
        # The pages for these load scripts from a content delivery network.
        docs_url=None, redoc_url=None,
    )  # fmt: skip

    @app.exception_handler(Refused)
    async def refuse(_: Request, refused: Refused) -> JSONResponse:
        headers = {"Retry-After": "2"} if refused.status == 503 else None
        return JSONResponse({"detail": refused.detail}, refused.status, headers)

    @app.exception_handler(Exception)
    async def fail(_: Request, __: Exception) -> JSONResponse:
        # The guard tells the terminal.
        return JSONResponse({"detail": "internal error"}, 500)

    for path, (names, kind) in _FILES.items():
        files = [importlib.resources.files("fastrnn").joinpath(name) for name in names]
        content = b"".join(file.read_bytes() for file in files)
        app.add_api_route(
            path, _answer_with(content, kind), methods=["GET", "HEAD"], include_in_schema=False
        )

    facts = {
        **describer.about(),
        "upload_bytes": limits.upload_bytes,
    }

    @app.get("/health", summary="Whether the server answers, and how many pictures wait")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": captions.waiting}

    @app.get("/about", summary="The model, its network, and what is told by default")
    async def about() -> dict[str, Any]:
        return facts

    @app.post(
        "/caption", summary="Caption a picture",
        responses={200: {"model": CaptionAnswer}, **_FAULTS},
        openapi_extra=_form_schema(
            beam=_number("Width of the beam search; 1 is greedy.", 1, MOST_BEAM, Wanted.beam),
            n_best=_number(
                "Number of captions, at most beam.", 1, MOST_BEAM, Wanted.n_best
            ),
            max_length=_number(
                "Largest number of words.", 1, MOST_LENGTH, Wanted.max_length
            ),
            alternatives=_number(
                "Number of words told at each step.", 0, MOST_ALTERNATIVES, Wanted.alternatives
            ),
        ),
    )  # fmt: skip
    async def caption(request: Request) -> JSONResponse:
        start = time.perf_counter()
        form = await _form(request, readers)
        asked = _wanted(form)
        picture: Picture | bytes = form.file
        # A small picture is read as soon as the network would wait for it in another thread.
        if len(form.file) > _SMALL or not captions.idle:
            picture = await _in_thread(readers, lambda: describer.read(form.file))
        answer = await _unless_gone(request, captions.submit(asked, picture))
        return JSONResponse({**answer, "seconds": round(time.perf_counter() - start, 4)})

    @app.post(
        "/saliency", summary="Saliency maps of the words of a caption",
        responses={
            200: {"model": SaliencyAnswer},
            501: {"model": Fault, "description": "This server has no maps; /about says why"},
            **_FAULTS,
        },
        openapi_extra=_form_schema(
            caption={"type": "string", "description": "The caption; by default the greedy one."},
            method={"type": "string", "enum": [*METHODS], "default": next(iter(METHODS))},
            step={
                "type": "integer", "minimum": 0,
                "description": "The word that is wanted, from 0; by default all.",
            },
        ),
    )  # fmt: skip
    async def saliency(request: Request) -> JSONResponse:
        start = time.perf_counter()
        asked = _explained(await _form(request, readers))
        try:
            answer = await _unless_gone(request, maps.submit(None, asked))
        finally:
            asked.gone.set()
        return JSONResponse({**answer, "seconds": round(time.perf_counter() - start, 4)})

    return Guard(app, limits, network)


def _answer_with(content: bytes, kind: str) -> Callable[[], Any]:
    async def answer() -> Response:
        return Response(content, media_type=kind)

    return answer


async def _in_thread(readers: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    try:
        future = asyncio.get_running_loop().run_in_executor(readers, work)
    except RuntimeError:  # it is shut down
        raise Refused(503, "the server is stopping") from None
    return await future


async def _form(request: Request, readers: ThreadPoolExecutor) -> Form:
    """Read the form of a request; a large one beside the loop that serves all requests."""
    content_type = request.headers.get("content-type", "")
    # Not request.body(), which would keep it as long as the request.
    body = b"".join([part async for part in request.stream()])
    if len(body) <= _SMALL:
        return read_form(content_type, body)
    return await _in_thread(readers, lambda: read_form(content_type, body))


async def _unless_gone(request: Request, work: Any) -> Any:
    """Wait for a result; give it up if whoever asked closes the connection."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = (asyncio.ensure_future(work), asyncio.ensure_future(gone()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Refused(499, "the client has closed the connection")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def _wanted(form: Form) -> Wanted:
    """Read what a request wants to know."""
    fields = {
        "beam": MOST_BEAM, "n_best": MOST_BEAM, "max_length": MOST_LENGTH,
        "alternatives": MOST_ALTERNATIVES,
    }  # fmt: skip
    found: dict[str, int] = {}
    for name, text in form.fields.items():
        if name not in fields:
            raise Refused(400, f"{name[:40]!r} is no field; expected one of {', '.join(fields)}")
        least = 0 if name == "alternatives" else 1
        if not (text.isdecimal() and len(text) < 6 and least <= int(text) <= fields[name]):
            raise Refused(
                400,
                f"{name} is {text[:40]!r}; expected a number from {least} to {fields[name]}",
            )
        found[name] = int(text)
    # Several captions need a beam.
    found.setdefault("beam", found.get("n_best", Wanted.beam))
    wanted = Wanted(**found)
    if wanted.n_best > wanted.beam:
        raise Refused(400, f"n_best is {wanted.n_best}; expected at most beam, {wanted.beam}")
    return wanted


def _explained(form: Form) -> Explained:
    """Read what a request for maps asks."""
    fields = dict(form.fields)
    caption, step = fields.pop("caption", None), fields.pop("step", None)
    method = fields.pop("method", next(iter(METHODS)))
    for name in fields:
        raise Refused(400, f"{name[:40]!r} is no field; expected one of caption, method, step")
    if method not in METHODS:
        raise Refused(400, f"method is {method[:40]!r}; expected one of {', '.join(METHODS)}")
    if caption is not None and not 0 < len(caption.split()) <= MOST_LENGTH:
        raise Refused(400, f"caption has {len(caption.split())} words; expected 1 to {MOST_LENGTH}")
    if step is not None and not (step.isdecimal() and len(step) < 4):
        raise Refused(400, f"step is {step[:40]!r}; expected the place of a word, from 0")
    return Explained(form.file, caption, method, None if step is None else int(step))


def _number(about: str, least: int, most: int, default: int) -> dict[str, Any]:
    return {
        "type": "integer", "minimum": least, "maximum": most, "default": default,
        "description": about,
    }  # fmt: skip


def _form_schema(**fields: dict[str, Any]) -> dict[str, Any]:
    file = {
        "type": "string", "format": "binary",
        "description": "The picture: JPEG, PNG, GIF, BMP, PPM, WebP or TIFF.",
    }  # fmt: skip
    schema = {"type": "object", "required": ["file"], "properties": {"file": file, **fields}}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}
