"""How one hub is set up. Every field is an option of `adapterhub serve` and an `ADAPTERHUB_*` environment variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Settings", "LIMITS", "KiB", "MiB", "GiB", "unshared"]

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

# What is limited: (requests, seconds), counted per token, or per address where there is none.
LIMITS: Mapping[str, tuple[int, int]] = {
    "api": (1000, 300),
    "resolve": (5000, 300),
    "upload": (1000, 3600),
    "login": (10, 300),
    "password": (10, 900),  # wrong ones, per account
}


@dataclass(frozen=True)
class Settings:
    """The settings of a hub.

    Attributes:
        data: folder of the database, the blobs, unfinished uploads and the secret.
        db: database URL; empty for SQLite in `data`.
        blobs: where blobs are kept: empty for `data/blobs`, or `s3://bucket/prefix`.
        public_url: address under which clients reach the hub; links are built from it, never from a request.
        workers: number of processes that serve requests.
        upload_mode: `auto` lets clients use LFS or Xet, `lfs` only LFS, `inline` puts all bytes into the commit.
        pickle_policy: `refuse` files that can run code, `quarantine` them (stored, not served) or `allow` them.
        enforce_checks: with `errors`, a pull request with a failing check cannot be merged; with `none` it can.
        load_checks: load each uploaded adapter into a model with random weights, in a process of its own; needs torch
            and `adapters` on this machine.
        multipart_bytes: LFS uploads above this size come in parts of it.
        lfs_bytes: files of at least this size are uploaded apart from the commit.
        max_file: largest file, in bytes.
        quota: bytes a namespace may hold unless its account says otherwise.
        limits: rate limits by kind; an empty mapping switches them off.
        open_signup: whether visitors may create accounts.
        name: what the site calls itself.
        redirect_blobs: answer downloads with a redirect to the blob store where it can sign addresses.
        accel_prefix: internal path for `X-Accel-Redirect` behind nginx; empty: the hub sends the bytes itself.
        trust_forwarded: take the caller's address from `X-Forwarded-For` (only behind a proxy that adds to it).
        upstream: address of another hub, such as `https://huggingface.co`, from which come repositories that are
            unknown here; empty for none. It is only read, and without a token.
        upstream_bytes: how much of it is kept, in bytes; what was used longest ago goes first.
        forwarded_hops: how many proxies of your own a request passes, each of which adds to `X-Forwarded-For`.
    """

    data: Path = Path("hub-data")
    db: str = ""
    blobs: str = ""
    public_url: str = "http://127.0.0.1:8090"
    workers: int = 1
    upload_mode: str = "auto"
    pickle_policy: str = "refuse"
    enforce_checks: str = "errors"
    load_checks: bool = False
    multipart_bytes: int = 512 * MiB
    lfs_bytes: int = 1 * MiB
    max_file: int = 20 * GiB
    quota: int = 50 * GiB
    limits: Mapping[str, tuple[int, int]] = field(default_factory=lambda: LIMITS)
    open_signup: bool = False
    name: str = "AdapterHub"
    redirect_blobs: bool = False
    accel_prefix: str = ""
    trust_forwarded: bool = False
    forwarded_hops: int = 1
    upstream: str = ""
    upstream_bytes: int = 50 * GiB

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            given = getattr(self, name)
            if given not in allowed:
                raise ValueError(f"{name}={given!r} is not one of {', '.join(allowed)}.")
        if self.forwarded_hops < 1:
            raise ValueError(f"forwarded_hops={self.forwarded_hops} must be 1 or more.")
        if not self.public_url.startswith(("http://", "https://")):
            raise ValueError(f"public_url={self.public_url!r} must begin with http:// or https://.")
        if self.upstream and not self.upstream.startswith(("http://", "https://")):
            raise ValueError(f"upstream={self.upstream!r} must begin with http:// or https://.")
        if self.upstream.rstrip("/") == self.public_url.rstrip("/"):
            raise ValueError(f"upstream={self.upstream!r} is this hub itself.")
        object.__setattr__(self, "data", Path(self.data).absolute())
        object.__setattr__(self, "public_url", self.public_url.rstrip("/"))
        object.__setattr__(self, "upstream", self.upstream.rstrip("/"))

    @property
    def database_url(self) -> str:
        """The database's URL, with the default filled in."""
        return self.db or f"sqlite+aiosqlite:///{self.data / 'hub.db'}"

    @property
    def scratch(self) -> Path:
        """Folder of unfinished uploads; on the same file system as the default blob store."""
        return self.data / "tmp"


def unshared(settings: Settings) -> int:
    """The bits that no file of a hub has: others read nothing, and its group only behind `X-Accel-Redirect`."""
    return 0o027 if settings.accel_prefix else 0o077


_CHOICES = {
    "upload_mode": ("auto", "inline", "lfs"),
    "pickle_policy": ("refuse", "quarantine", "allow"),
    "enforce_checks": ("errors", "none"),
}
