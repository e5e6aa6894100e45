"""The server: uvicorn with the application, in one process or several."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import GiB, KiB, MiB, Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["app", "parse", "read_settings", "serve", "server_options", "text_of"]

PREFIX = "ADAPTERHUB_"
_UNITS = {"": 1, "k": KiB, "m": MiB, "g": GiB}
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
# Seconds that running requests get to end when the server is stopped.
_GRACEFUL = 20

# ---- settings as text -----------------------------------------------------------------------------------------------


def read_settings(given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from options, else from `ADAPTERHUB_*` variables, else as they are by default.

    Raises:
        ValueError: a value is none of its kind.
    """
    values = {}
    for field in dataclasses.fields(Settings):
        text = environment.get(PREFIX + field.name.upper())
        if given.get(field.name) is not None:
            values[field.name] = given[field.name]
        elif text is not None:
            values[field.name] = parse(field.name, text)
    return Settings(**values)


def parse(name: str, text: str) -> Any:
    """The value of a setting, from its text.

    Raises:
        ValueError: the text is none of its kind.
    """
    kind = str(next(field.type for field in dataclasses.fields(Settings) if field.name == name))
    if kind == "int":
        return _number(name, text)
    if kind == "bool":
        if text.lower() not in _YES + _NO:
            raise ValueError(f"{name}={text!r} is neither yes nor no.")
        return text.lower() in _YES
    if kind.startswith("Mapping"):
        return _limits(text)
    return Path(text) if kind == "Path" else text


def _number(name: str, text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(i?b)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{name}={text!r} is no number. Give one such as 4, 512MiB or 20GiB.")
    return int(match[1]) * _UNITS[match[2].lower()]


def _limits(text: str) -> dict[str, tuple[int, int]]:
    if text.lower() in _NO:
        return {}
    limits = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)=(\d+)/(\d+)\s*", part)
        if match is None or not int(match[3]):
            raise ValueError(f"limits={text!r}: {part!r} is not kind=requests/seconds, such as api=1000/300.")
        limits[match[1]] = (int(match[2]), int(match[3]))
    return limits


def text_of(value: Any) -> str:
    """The text from which `parse` gets a value."""
    if isinstance(value, Mapping):
        return ",".join(f"{kind}={number}/{seconds}" for kind, (number, seconds) in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- the server -----------------------------------------------------------------------------------------------------


def app() -> ASGIApp:
    """The application of one worker, with the settings that its parent has put into the environment."""
    from .app import create_app

    _log_to_stderr()
    return create_app(read_settings({}))


def serve(settings: Settings, *, host: str = "127.0.0.1", port: int = 8090, on_ready: Any = None) -> None:
    """Runs the hub until it is told to stop; requests that run then are answered first.

    Args:
        on_ready: called with the setup key, or None, when the hub is about to take requests.

    Raises:
        OSError: the address is in use, or not one of this machine.
    """
    import uvicorn

    _log_to_stderr()
    with _listen(host, port) as listening:
        key = asyncio.run(_prepare(settings))
        if on_ready is not None:
            on_ready(key)
        if settings.workers == 1:
            from .app import create_app

            uvicorn.Server(uvicorn.Config(create_app(settings), **server_options(settings))).run([listening])
        else:
            from uvicorn.supervisors import Multiprocess

            for field in dataclasses.fields(Settings):
                os.environ[PREFIX + field.name.upper()] = text_of(getattr(settings, field.name))
            _share_metrics(settings.data / "metrics")
            options = {**server_options(settings), "factory": True, "workers": settings.workers}
            Multiprocess(uvicorn.Config("adapterhub.serve:app", **options), [listening]).run()


def server_options(settings: Settings) -> dict[str, Any]:
    """How uvicorn is run. Behind a proxy, callers' addresses are read where requests are counted, not here."""
    from .ops.slow_clients import PatientProtocol

    return {
        "http": PatientProtocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "log_config": None,
        "log_level": "warning",
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": 65,
        "timeout_graceful_shutdown": _GRACEFUL,
    }


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --host or --port.") from error


async def _prepare(settings: Settings) -> str | None:
    """What is done once, before any worker starts."""
    from .hub import Hub
    from .ops.fsck import finish_creations
    from .ops.setup import prepare, setup_key

    hub = await Hub.open(settings)
    try:
        await prepare(hub)
        await finish_creations(hub)
        return await setup_key(hub)
    finally:
        await hub.close()


def _share_metrics(folder: Path) -> None:
    """Lets the workers add up their figures in files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
