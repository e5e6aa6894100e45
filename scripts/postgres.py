"""A throw-away PostgreSQL: started in a temporary folder, gone when it ends. Installs nothing.

python scripts/postgres.py          # prints the address of an empty database and runs until Ctrl-C
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Nothing is kept, so nothing has to survive a power cut.
_OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=60")


@dataclass(frozen=True)
class Cluster:
    """A running PostgreSQL, reached through a Unix socket in `folder`."""

    folder: Path
    programs: Path

    def url(self, database: str) -> str:
        """The address of a database, as the hub's settings take it."""
        return f"postgresql+asyncpg://postgres@/{database}?host={self.folder}"

    def create(self, template: str = "template0") -> str:
        """Makes a new database, empty or a copy of another one, and returns its name."""
        name = f"hub_{secrets.token_hex(6)}"
        self.psql("postgres", f'CREATE DATABASE "{name}" TEMPLATE "{template}" ENCODING \'UTF8\'')
        return name

    def psql(self, database: str, statement: str) -> None:
        """Runs a statement."""
        options = ["-qX", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-U", "postgres", "-d", database]
        subprocess.run([self.programs / "psql", *options, "-c", statement], check=True, stdout=subprocess.DEVNULL)


def find_programs() -> Path | None:
    """The folder of `initdb` and its kin: where Debian keeps them, or on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Starts PostgreSQL, and stops it at the end of the block.

    Raises:
        FileNotFoundError: it is not installed.
    """
    programs = find_programs()
    if programs is None:
        raise FileNotFoundError("PostgreSQL is not installed: there is no /usr/lib/postgresql/*/bin/initdb.")
    folder = Path(tempfile.mkdtemp(prefix="hub-pg-"))
    user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "nobody")
        user = ["setpriv", "--reuid=nobody", "--clear-groups", "--"]
    data = folder / "data"

    def run(*command: str | Path, check: bool = True) -> None:
        quiet = subprocess.DEVNULL
        subprocess.run([*user, *command], check=check, stdout=quiet, stderr=quiet, cwd=folder)

    settings = " ".join(f"-c {option}" for option in _OPTIONS)
    control: list[str | Path] = [programs / "pg_ctl", "-D", data, "-w", "-s"]
    try:
        run(programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
        options = f"-k {folder} -c listen_addresses='' {settings}"
        run(*control, "-o", options, "-l", folder / "log", "start")
        yield Cluster(folder, programs)
    finally:
        run(*control, "-m", "immediate", "stop", check=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    import signal

    with cluster() as running:
        print(running.url(running.create()), flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
