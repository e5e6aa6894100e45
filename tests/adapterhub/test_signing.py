"""Signed addresses: only what was signed, only while it lasts, only by this hub."""

import stat

import pytest

from adapterhub.errors import Forbidden
from adapterhub.signing import Signer, load_secret


def test_what_was_signed_passes():
    signer = Signer(b"secret")
    expires, signature = signer.sign("put", 3, "ab" * 32, 10)
    signer.verify(expires, signature, "put", 3, "ab" * 32, 10)


@pytest.mark.parametrize(
    "parts",
    [("put", 3, "oid", 11), ("put", 31, "oid", 0), ("get", 3, "oid", 10), ("put", 3, "oi", "d10"), ("put", 3, "oid")],
)
def test_anything_else_is_refused(parts):
    signer = Signer(b"secret")
    expires, signature = signer.sign("put", 3, "oid", 10)
    with pytest.raises(Forbidden, match="not signed"):
        signer.verify(expires, signature, *parts)


def test_a_longer_life_cannot_be_claimed():
    signer = Signer(b"secret")
    expires, signature = signer.sign("x")
    with pytest.raises(Forbidden, match="not signed"):
        signer.verify(expires + 1, signature, "x")


def test_it_ends():
    signer = Signer(b"secret")
    expires, signature = signer.sign("x", lifetime=-1)
    with pytest.raises(Forbidden, match="expired"):
        signer.verify(expires, signature, "x")


def test_a_former_secret_still_counts_and_a_foreign_one_does_not():
    expires, signature = Signer(b"old").sign("x")
    Signer(b"new", b"old").verify(expires, signature, "x")
    with pytest.raises(Forbidden):
        Signer(b"new").verify(expires, signature, "x")


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("ADAPTERHUB_SECRET", raising=False)
    path = tmp_path / "secret"
    first = load_secret(path)
    assert load_secret(path) == first
    assert len(first) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv("ADAPTERHUB_SECRET", "given")
    assert load_secret(path) != first
