"""Signed addresses: what a client may do once, for a while, without its token."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from .errors import Forbidden

__all__ = ["Signer", "load_secret"]


class Signer:
    """HMAC-SHA256 over everything an address allows and the second at which it ends.

    Args:
        secret: the hub's secret; `previous` ones are still accepted, so that a secret can be changed while in use.
    """

    def __init__(self, secret: bytes, *previous: bytes) -> None:
        self._secrets = (secret, *previous)

    def sign(self, *parts: object, lifetime: int = 3600) -> tuple[int, str]:
        """The second at which the signature ends, and the signature of `parts`."""
        expires = int(time.time()) + lifetime
        return expires, _mac(self._secrets[0], parts, expires)

    def verify(self, expires: int, signature: str, *parts: object) -> None:
        """Refuses a signature that is not one of `parts`, or has ended.

        Raises:
            Forbidden: it does not fit, or is too old.
        """
        given = signature.encode("utf-8", "surrogateescape")
        if not any(hmac.compare_digest(_mac(secret, parts, expires).encode(), given) for secret in self._secrets):
            raise Forbidden("This address was not signed by this hub, or was changed. Ask the hub for a new one.")
        if expires < time.time():
            raise Forbidden("This address has expired. Start the upload or download again.")


def load_secret(path: Path) -> bytes:
    """The hub's secret: `ADAPTERHUB_SECRET`, or the content of a file, which is made at first."""
    given = os.environ.get("ADAPTERHUB_SECRET")
    if given:
        return hashlib.sha256(given.encode()).digest()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return bytes.fromhex(path.read_text().strip())
    with os.fdopen(descriptor, "w") as file:
        secret = secrets.token_bytes(32)
        file.write(secret.hex())
    return secret


def _mac(secret: bytes, parts: tuple[object, ...], expires: int) -> str:
    # Lengths in front: ("a", "bc") and ("ab", "c") must differ.
    text = "".join(f"{len(part)}:{part}" for part in (*map(str, parts), str(expires)))
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
