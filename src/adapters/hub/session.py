"""Which hub is meant, with which token, and what do its failures mean?"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from adapters._version import __version__
from adapters.errors import AdapterError, ConfigError, HubError

PUBLIC = "https://huggingface.co"

HTTPError: type[Exception] = HfHubHTTPError.__mro__[1]
"""What failed requests raise: a class of httpx or of its successor, whichever this huggingface_hub is built on."""

LOGIN = "set the environment variable HF_TOKEN to a token of this hub, or pass token=..."


@dataclass(frozen=True)
class _Choice:
    url: str
    token: str | None


_chosen: _Choice | None = None


def use(url: str | None, token: str | None = None) -> ExitStack:
    """Choose the hub that names of adapters refer to, for this whole process.

    Where base models come from does not change: that is the environment variable HF_ENDPOINT, which is also the
    default here. As a context manager it goes back to the hub before at the end of the block:

        adapters.hub.use("http://hub.example.org")  # from now on
        with adapters.hub.use("https://huggingface.co"):  # here only
            ...

    Args:
        url: Address of a hub; None for the default.
        token: Token for this hub. Without it, HF_TOKEN counts; a token that `hf auth login` has stored is sent only
            to the hub in HF_ENDPOINT.
    Raises:
        ConfigError: `url` is not an address.
    """
    global _chosen
    before = _chosen
    _chosen = None if url is None else _Choice(_address(url), token)
    undo = ExitStack()
    undo.callback(_set, before)
    return undo


def endpoint() -> str:
    """Address of the hub in use: that of `use`, else HF_ENDPOINT, else the public Hugging Face Hub."""
    return constants.ENDPOINT if _chosen is None else _chosen.url


def is_public() -> bool:
    """Whether the hub in use is the public Hugging Face Hub, which has no index of tasks."""
    return endpoint() == PUBLIC


def credentials(token: str | bool | None = None) -> str | bool | None:
    """The token to send, in the form huggingface_hub takes it; False for none."""
    if token is not None:
        return token
    if _chosen is not None and _chosen.token is not None:
        return _chosen.token
    if endpoint() == constants.ENDPOINT:
        return None
    return os.environ.get("HF_TOKEN") or False


def cache_folder() -> str | None:
    """Where files of the hub in use are kept; None for the cache that huggingface_hub has for its endpoint.

    Other hubs have folders of their own: equal names on two hubs are not the same adapter.
    """
    if endpoint() == constants.ENDPOINT:
        return None
    return os.path.join(constants.HF_HOME, "hubs", re.sub(r"[^\w.-]+", "_", endpoint().partition("://")[2]))


def api(token: str | bool | None = None) -> HfApi:
    """A client of the hub in use."""
    return HfApi(endpoint=endpoint(), token=credentials(token), library_name="adapters", library_version=__version__)


@contextmanager
def plain_uploads() -> Iterator[None]:
    """Upload by Git LFS to hubs other than the public one: with small files it is faster than Xet."""
    if is_public():
        yield
        return
    with _SETTINGS:
        before = constants.HF_HUB_DISABLE_XET
        constants.HF_HUB_DISABLE_XET = True
        try:
            yield
        finally:
            constants.HF_HUB_DISABLE_XET = before


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn failed requests into a `HubError` that says what was being done, where, and what to do next."""
    try:
        yield
    except AdapterError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise HubError(f"{doing} failed on {endpoint()}: {reason(cause)} {advice(cause)}".rstrip()) from error


def reason(error: BaseException) -> str:
    """What the hub said, or else what of the error is meant for people, as a sentence."""
    own = str(error).strip()
    if isinstance(error, (HTTPError, OSError)):
        own = own.partition("\n")[0]  # what follows are addresses and numbers of requests
    said: str = getattr(error, "server_message", None) or own or type(error).__name__
    return said if said.endswith((".", "!", "?")) else f"{said}."


def advice(error: BaseException) -> str:
    """What to do about a failed request."""
    status = status_of(error)
    if status in (401, 404):
        return f"If it is private or yours, log in: {LOGIN}"
    if status == 403:
        return "The token does not give this right: take one with the role 'write', of a member of this namespace."
    if status is None and is_unreachable(error):
        return "Check the address (adapters.hub.endpoint()), the network and HF_HUB_OFFLINE."
    return ""


def status_of(error: BaseException) -> int | None:
    """HTTP status of the answer, if there was one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer, or only that it cannot at the moment."""
    status = status_of(error)
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError)) and (status is None or status >= 500)


def _address(url: str) -> str:
    if re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url) is None:
        raise ConfigError(f"{url!r} is not the address of a hub. Write it as in 'http://hub.example.org:8090'.")
    return url.rstrip("/")


def _set(choice: _Choice | None) -> None:
    global _chosen
    _chosen = choice


_SETTINGS = threading.RLock()
