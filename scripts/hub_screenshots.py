"""Pictures of a running hub for the docs: start `make hub`, then run this in another terminal."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parents[1] / "docs/images"
# name: (path, colour scheme, width of the window)
PAGES: dict[str, tuple[str, Literal["light", "dark"], int]] = {
    "hub-home": ("/", "light", 1180),
    "hub-place": ("/explore/docstring/stdlib-area?view=leaderboard", "light", 1180),
    "hub-adapter": ("/example/docstring-lora", "light", 1180),
    "hub-config": ("/example/docstring-bottleneck/config", "dark", 1180),
    "hub-narrow": ("/example/docstring-ia3", "dark", 360),
}
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main(url: str) -> None:
    """Takes every picture anew."""
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        for name, (path, scheme, width) in PAGES.items():
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 820})
            page = context.new_page()
            answer = page.goto(url.rstrip("/") + path)
            assert answer is not None and answer.ok, f"{url}{path} cannot be seen"
            page.screenshot(path=FOLDER / f"{name}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8090")
