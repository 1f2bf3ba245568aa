"""Keep the output of a real run under docs/evidence: stamped, redacted, with a checksum.

    python ci/evidence.py NAME --file OUTPUT --command "..." --machine "one H100 80GB HBM3, driver 580.159.04"

writes docs/evidence/NAME.txt: a header with commit, date, command, machine and SHA-256 of what follows, then the
output with host names, GPU ids, addresses and private paths replaced. A page of Markdown has the same header in a
comment, a JSON document in a member `stamp`, whose checksum is that of the document without it. `--check` verifies
every checksum.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "docs" / "evidence"
MARK = "-" * 100
MARK_MD = "-->"
SUFFIXES = ("txt", "md", "json")
REDACTIONS = (
    (re.compile(r"(GPU|MIG)-(?!00000000)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), r"\1-<id>"),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b"), "<mac>"),
    (re.compile(r"\b(?!127\.)(?:\d{1,3}\.){3}\d{1,3}\b(?!\.\d)"), "<address>"),
    (re.compile(r"(\"?hostname\"?\s*[:=]\s*\"?)[^\"\s,]+"), r"\1<host>"),
    # What a machine's owner adds to a kernel's release ("6.8.0-my-build"); the version is what matters.
    (re.compile(r"(\"kernel\": \"\d+\.\d+(?:\.\d+)?)-[^\"]+"), r"\1-<build>"),
    (re.compile(r"/(?:root|home/[^/\s\"']+|work)(?=/)"), "<home>"),
)


def redact(text: str) -> str:
    """Return TEXT without what names a machine, a board or a person."""
    for pattern, replacement in REDACTIONS:
        text = pattern.sub(replacement, text)
    return text


def commit() -> str:
    """Return the commit of the tree that was run, with a mark when it had changes of its own."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", ".", ":!docs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return head.strip() + (" (with uncommitted changes)" if changed.strip() else "")


def digest(text: str) -> str:
    """Return the SHA-256 of TEXT in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def write(name: str, text: str, command: str, machine: str, ran: str = "", suffix: str = "txt") -> Path:
    """Write docs/evidence/NAME.SUFFIX (txt, md or json) with its stamp and return the path.

    RAN is the commit that ran, default this one; JSON must be an object.
    """
    body = redact(text)
    stamp = {
        "commit": ran or commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": redact(command),
        "machine": machine,
    }
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    path = EVIDENCE / f"{name}.{suffix}"
    if suffix == "json":
        document = json.loads(body)
        stamp["sha256"] = digest(canonical(document))
        path.write_text(json.dumps({"stamp": stamp, **document}, indent=1) + "\n", encoding="utf-8")
        return path
    stamp["sha256"] = f"{digest(body)} (of everything below the line)"
    header = "\n".join(f"{key + ':':<8} {value}" for key, value in stamp.items())
    begin, end = ("<!--\n", f"\n{MARK_MD}\n") if suffix == "md" else ("", f"\n{MARK}\n")
    path.write_text(f"{begin}{header}{end}{body}", encoding="utf-8")
    return path


def canonical(document: Any) -> str:
    """Return DOCUMENT as the text whose checksum is stamped, whatever its indentation."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def fits(path: Path) -> bool:
    """Whether the checksum in PATH fits what it holds."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        document = json.loads(text)
        stamp = document.pop("stamp", {})
        return bool(stamp.get("sha256") == digest(canonical(document)))
    header, _, body = text.partition(f"{MARK_MD if path.suffix == '.md' else MARK}\n")
    stamped = re.search(r"^sha256:\s+([0-9a-f]{64})", header, re.MULTILINE)
    return stamped is not None and stamped.group(1) == digest(body)


def check() -> int:
    """Return the number of evidence files whose checksum does not fit what they hold."""
    wrong = 0
    for path in sorted(one for suffix in SUFFIXES for one in EVIDENCE.glob(f"*.{suffix}")):
        if not fits(path):
            print(f"{path.relative_to(ROOT)}: the checksum does not fit its content", file=sys.stderr)
            wrong += 1
    return wrong


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--command", default="")
    parser.add_argument("--machine", default="")
    parser.add_argument("--commit", default="", help="the commit that was run, where it is not the present one")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        return min(1, check())
    if not (options.name and options.file and options.command and options.machine):
        parser.error("NAME, --file, --command and --machine are needed")
    text = options.file.read_text(errors="replace")
    print(write(options.name, text, options.command, options.machine, options.commit))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
