"""``fastrnn serve``: a page that captions pictures."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from .options import add_float, add_integer, add_threads, use_threads


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "serve",
        help="serve a page that captions pictures",
        description="Serve a page, for this machine alone, where one drops, pastes or photographs "
        "a picture and sees its captions, the probability of each word and what else it could "
        "have been; and POST /caption, which tells programs the same. Pictures are not stored. "
        "Ctrl-C ends it.",
        epilog="example: fastrnn serve runs/mine --open",
    )
    parser.add_argument("of_run", metavar="RUN", help="a run directory of fastrnn train")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="the address to listen at (default: %(default)s, which only this machine reaches)",
    )  # fmt: skip
    add_integer(
        parser, "--port", at_least=0, default=8231,
        help="the port; 0: one that is free (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-network", action="store_true",
        help="allow a --host that other machines reach. Whoever reaches it can use the server: "
        "there is no password, and pictures and captions are sent unencrypted",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_float(
        parser, "--max-upload", at_least=0.001, default=25.0, metavar="MB",
        help="largest upload in megabytes (default: %(default)g)",
    )  # fmt: skip
    add_threads(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from ..serve import serve

    if arguments.port > 65535:
        raise ValueError(f"--port is {arguments.port}; expected at most 65535")
    most_megabytes = 200
    if arguments.max_upload > most_megabytes:
        raise ValueError(
            f"--max-upload is {arguments.max_upload:g}; expected at most {most_megabytes}"
        )
    use_threads(arguments)

    def say(url: str) -> None:
        print(f"{arguments.of_run}: {url} (Ctrl-C ends it)", flush=True)
        if arguments.allow_network:
            print(
                "fastrnn: warning: whoever reaches this machine can use the server: there is no "
                "password, and pictures and captions are sent unencrypted",
                file=sys.stderr,
            )
        if arguments.open:
            _open(url)

    caught = serve(
        arguments.of_run, host=arguments.host, port=arguments.port,
        allow_network=arguments.allow_network, threads=arguments.threads,
        upload_bytes=round(arguments.max_upload * 1e6), on_start=say,
    )  # fmt: skip
    if caught == signal.SIGINT:
        raise KeyboardInterrupt
    return 0


def _open(url: str) -> None:
    """Open a page; the browser may take its time, and the server answers meanwhile."""
    import threading
    import webbrowser

    def start() -> None:
        if not webbrowser.open(url):
            print(f"fastrnn: warning: no browser was found; open {url}", file=sys.stderr)

    threading.Thread(target=start, name="browser", daemon=True).start()
