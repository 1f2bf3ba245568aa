"""Rebuild pytest_gpudiscovery/ollama/data/lines.json: in which releases of Ollama each key message is at which line.

    python ci/ollama_lines.py CLONE

CLONE is a git clone of https://github.com/ollama/ollama with its tags; nothing of it is executed or copied, only the
line numbers of the messages in messages.json are. Run it when Ollama has new releases; `--check` only says whether the
file is what CLONE gives.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "pytest_gpudiscovery" / "ollama" / "data"
FILES = re.compile(
    r"(server/(routes|images)|(gpu|discover)/(gpu|types|runner|llama_server|native_probe|cuda_compat)|discover/cuda_common"
    r"|llm/(server|llama_server)|ml/device|runner/ollamarunner/runner|ml/backend/ggml/ggml/src/ggml)\.go"
)
# Not fmt.Errorf, nor a variable that is logged later: the line in the log is that of the call that logs.
CALL = re.compile(rb"(?:slog\.(?:Debug|Info|Warn|Error)(?:Context)?|logutil\.Trace(?:Context)?)\(")
LITERAL = re.compile(rb'"((?:[^"\\\n]|\\.)*)"')
OLDEST = (0, 1, 21)  # the first release that logs through slog


def git(clone: str, *arguments: str) -> bytes:
    """Return what git says about CLONE."""
    return subprocess.run(["git", "-C", clone, *arguments], capture_output=True, check=True).stdout


def number(tag: str) -> tuple[int, ...]:
    """Return (0, 16, 3) for v0.16.3."""
    return tuple(map(int, tag[1:].split(".")))


def literals(source: bytes) -> Iterator[tuple[int, str]]:
    """Yield line number and first string literal of every call in SOURCE that writes a log line."""
    for call in CALL.finditer(source):
        literal = LITERAL.search(source, call.end(), call.end() + 200)
        before = source[call.end() : literal.start()] if literal else b""
        if literal is not None and not _leaves(before):
            text = literal[1].decode("utf-8", "replace").replace('\\"', '"')
            yield source.count(b"\n", 0, call.start()) + 1, text


def _leaves(between: bytes) -> bool:
    """Return whether the call whose arguments begin with BETWEEN ends inside it."""
    depth = 0
    for char in between:
        depth += (char == ord("(")) - (char == ord(")"))
        if depth < 0:
            return True
    return False


def table(clone: str) -> dict[str, Any]:
    """Return the content of lines.json."""
    messages = json.loads((DATA / "messages.json").read_text(encoding="utf-8"))["messages"]
    wanted = {text: message["id"] for message in messages for text in (message["text"], *message.get("aliases", ()))}
    prefixes = sorted(wanted, key=len, reverse=True)
    tags = [tag for tag in git(clone, "tag").decode().split() if re.fullmatch(r"v\d+\.\d+\.\d+", tag)]
    tags = sorted((tag for tag in tags if number(tag) >= OLDEST), key=number)
    lines: dict[str, dict[str, dict[int, list[list[int]]]]] = {}
    seen: dict[str, list[tuple[int, str]]] = {}
    for index, tag in enumerate(tags):
        for entry in git(clone, "ls-tree", "-r", tag).decode().splitlines():
            (_, _, blob), path = entry.split("\t")[0].split(), entry.split("\t")[1]
            if FILES.fullmatch(path) is None:
                continue
            if blob not in seen:
                seen[blob] = list(literals(git(clone, "cat-file", "blob", blob)))
            for line, literal in seen[blob]:
                text = literal.removeprefix("[%d] ")
                found = next((prefix for prefix in prefixes if text.startswith(prefix)), None)
                if found is None or (found == "system" and text != found):
                    continue
                ranges = lines.setdefault(Path(path).name, {}).setdefault(wanted[found], {}).setdefault(line, [])
                if ranges and ranges[-1][1] >= index - 1:
                    ranges[-1][1] = index
                else:
                    ranges.append([index, index])
    return {
        "sources": [f"https://github.com/ollama/ollama, {len(tags)} tags, {tags[0]} to {tags[-1]}; ci/ollama_lines.py"],
        "releases": [tag[1:] for tag in tags],
        "lines": {
            file: {
                message: [
                    [line, tags[first][1:], tags[last][1:]]
                    for line, ranges in sorted(by_line.items())
                    for first, last in ranges
                ]
                for message, by_line in sorted(by_message.items())
            }
            for file, by_message in sorted(lines.items())
        },
    }


def render(content: dict[str, Any]) -> str:
    """Return CONTENT as JSON with one message a line."""
    parts = []
    for file, by_message in content["lines"].items():
        rows = ",\n".join(f"   {json.dumps(message)}: {json.dumps(ranges)}" for message, ranges in by_message.items())
        parts.append(f"  {json.dumps(file)}: {{\n{rows}\n  }}")
    releases = json.dumps(content["releases"])
    return (
        f'{{\n "sources": {json.dumps(content["sources"])},\n "releases": {releases},\n "lines": {{\n'
        + ",\n".join(parts)
        + "\n }\n}\n"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = render(table(options.clone))
    path = DATA / "lines.json"
    if options.check:
        same = path.read_text(encoding="utf-8") == text
        print(
            "lines.json is what the clone gives" if same else "lines.json is not what the clone gives", file=sys.stderr
        )
        return int(not same)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
