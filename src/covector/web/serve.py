"""Serve the page on this machine alone: a free port, a fresh token, the browser opened, Ctrl-C ends it cleanly."""

import atexit
import os
import secrets
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable

import uvicorn

from covector.web.app import create_app
from covector.web.guard import Guard
from covector.web.jobs import Jobs
from covector.web.shown import Shown

HOST = "127.0.0.1"
# What is asked for when nobody names a port: any that is free.
ANY = 0


def serve(
    shown: Shown, *, port: int = ANY, browser: bool = True, say: Callable[[str], object] = sys.stderr.write
) -> None:
    """Serve until interrupted. `say` gets the address (a line). Raises OSError where the port is taken."""
    if not shown.is_model:  # an atlas may be a stranger's: nothing is fetched for the name that it gives
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with socket.create_server((HOST, port)) as listening:
        number = listening.getsockname()[1]
        token = secrets.token_urlsafe(24)
        address = f"http://{HOST}:{number}/{token}/"
        jobs = Jobs()
        # A closed terminal or a plain kill ends it as Ctrl-C does: the process that runs jobs must not be left behind.
        atexit.register(jobs.close)
        for other in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            signal.signal(other, _interrupt)
        try:
            if not shown.is_built:
                shown.build(jobs)
            guarded = Guard(create_app(shown, jobs), token, number)
            config = uvicorn.Config(guarded, log_level="warning", access_log=False, lifespan="off", server_header=False)
            server = uvicorn.Server(config)
            if shown.is_built:
                threading.Thread(target=shown.bundle.warm, daemon=True).start()
            threading.Thread(target=_announce, args=(server, address, browser, say), daemon=True).start()
            server.run(sockets=[listening])
        finally:
            jobs.close()
            atexit.unregister(jobs.close)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _announce(server: uvicorn.Server, address: str, browser: bool, say: Callable[[str], object]) -> None:
    while not server.started and not server.should_exit:
        time.sleep(0.01)
    say(f"covector: {address}\nCtrl-C ends it.\n")
    if browser:
        webbrowser.open(address)
