"""A page and an HTTP interface that caption pictures: ``fastrnn serve``.

`serve` runs the server of a run. Pictures come as multipart forms, are read within limits of size
and time, wait in a bounded queue for the network, and are not stored.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

from ..extras import install_command

__all__ = ["serve"]


def serve(
    run: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8231,
    allow_network: bool = False,
    threads: int | None = None,
    upload_bytes: int | None = None,
    on_start: Callable[[str], None] | None = None,
) -> int | None:
    """Serve captions of a run until a signal ends it.

    Parameters
    ----------
    run : path
        A run directory, or a model file; see `fastrnn.captioner.Captioner.load`.
    host : str, optional
        The address to listen at. Default 127.0.0.1, which this machine alone reaches.
    port : int, optional
        The port; 0 takes one that is free. Default 8231.
    allow_network : bool, optional
        Allow a `host` that other machines reach. Whoever reaches it may use the server: there is
        no password, and nothing is encrypted. Default False.
    threads : int, optional
        Threads of the network; by default its engine decides.
    upload_bytes : int, optional
        Largest upload. Default 25,000,000.
    on_start : callable, optional
        Called as ``on_start(url)`` when the server answers.

    Returns
    -------
    int or None
        The number of the signal that ended the server.

    Raises
    ------
    ImportError
        If a package of the extra ``serve`` is missing.
    OSError, ValueError
        If the run cannot caption photographs, or the address cannot be listened at.
    """
    from .guard import is_loopback

    if not allow_network and not is_loopback(host):
        raise ValueError(
            f"--host is {host}; expected 127.0.0.1 or, with --allow-network, an address that other "
            "machines reach (whoever reaches it can use the server: there is no password, and "
            "pictures and captions are sent unencrypted)"
        )
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError(
            f"fastrnn serve needs the package {error.name}: {install_command('serve')}"
        ) from None
    from .. import get_num_threads, set_num_threads
    from ..captioner import Captioner
    from .app import make_app
    from .describer import Describer, explain_by
    from .limits import Limits
    from .server import Server, open_socket, url_of

    limits = Limits() if upload_bytes is None else Limits(upload_bytes=upload_bytes)
    opened = open_socket(host, port)
    threads_before = get_num_threads()
    try:
        url = url_of(opened)
        name = Path(run).resolve().name
        captioner = Captioner.load(run, threads=threads)
        describer = Describer(captioner, name, explain_by(captioner))
        app = make_app(describer, limits=limits, network=not is_loopback(host))
        server = Server(app, limits, None if on_start is None else lambda: on_start(url))
        # The network has its threads. What follows it is so small that more than one would wait
        # for each other longer than they compute, above all where other programs run.
        set_num_threads(1)
        # What was imported is not looked through for garbage again and again.
        gc.freeze()
        with threadpool_limits(1, user_api="blas"):
            server.run(sockets=[opened])
    finally:
        gc.unfreeze()
        set_num_threads(threads_before)
        opened.close()
    return server.caught
