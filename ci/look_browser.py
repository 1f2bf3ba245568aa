"""One headless visit of Chromium to a page of this machine: its picture, its paper, what it complained about."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--log-level=0"),
)
SCHEMES = {"light": (), "dark": ("--blink-settings=preferredColorScheme=0", "--force-dark-mode")}
LIMIT_S = 90
TROUBLE = re.compile(r"CONSOLE|ERR_|Refused to|net::|violates")


def chromium(url: str, profile: str, *flags: str) -> tuple[str, str]:
    """Return stdout and stderr of one headless visit to URL; raises CalledProcessError or TimeoutExpired."""
    command = ["chromium", *FLAGS, f"--user-data-dir={profile}", *flags, url]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=True)
    return done.stdout, done.stderr


def framed(page: Path, width: int, height: int = 20_000) -> str:
    """Return a page that shows PAGE in a frame WIDTH pixels wide: a headless window is never narrower than 500."""
    style = f"border:0;width:{width}px;height:{height}px"
    return f'<body style="margin:0"><iframe src="{page.name}" style="{style}"></iframe>'


def photograph(page: Path, out: Path, width: int, height: int, profile: str, *flags: str) -> list[str]:
    """Write the picture OUT of PAGE; return what the browser complained about."""
    outer = page.with_suffix(".frame.html")
    outer.write_text(framed(page, width, height), encoding="utf-8")
    _, errors = chromium(outer.as_uri(), profile, f"--screenshot={out}", f"--window-size={width},{height}", *flags)
    outer.unlink()
    return [f"{out.name}: {line}" for line in errors.splitlines() if TROUBLE.search(line)]
