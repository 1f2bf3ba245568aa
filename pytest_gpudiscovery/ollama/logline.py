"""One line of a log, whatever carried it: what Ollama wrote, when, and which process wrote it.

Carriers that are taken off (nested ones too: docker's JSON around a compose prefix, say): journalctl's text formats,
`journalctl -o json`, docker's json-file, docker compose, kubectl and CRI timestamps, `kubectl logs --prefix`, syslog.
Inside may be Go's slog text (`time=… level=… source=… msg=…`), slog's JSON, Go's older log format
(`2024/11/01 12:00:00 routes.go:1158: INFO …`), a GIN request line, or anything else: a child's own output.
Nothing that a line holds can raise here or take more than linear time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_gpudiscovery.ollama.gotime import STAMP, seconds, stamp

LINE_LIMIT = 64 * 1024  # characters of a line that are looked at
ATTRIBUTES = 200
NESTING = 4  # carriers inside each other

SLOG, OTHER, REQUEST, EMPTY = "slog", "other", "request", "empty"


@dataclass(frozen=True)
class LogLine:
    """One line. Times are seconds since 1970; `offset_s` is the writer's time zone, where its time stamp has one."""

    kind: str  # SLOG, OTHER (a child's or systemd's own words), REQUEST (GIN), EMPTY
    text: str  # without its carriers
    time: float | None = None
    offset_s: int | None = None
    level: str | None = None
    file: str | None = None  # basename, as in source=runner.go:464
    line: int | None = None
    message: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    pid: int | None = None
    origin: str = ""  # container, pod or unit, where a carrier names it
    carriers: tuple[str, ...] = ()
    number: int | None = None  # of the line in the log, from 1

    @property
    def source(self) -> str:
        """Return "runner.go:464", empty when the line names none."""
        return f"{self.file}:{self.line}" if self.file else ""


_ANSI = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
_CRI = re.compile(rf"{STAMP} (?:stdout|stderr) ([FP]) ")
_LEADING = re.compile(rf"{STAMP}\s+")
_COMPOSE = re.compile(r"([A-Za-z0-9][\w.-]{0,100})\s{0,60}\| ?")
_POD = re.compile(r"\[(?:pod|deployment|statefulset|container)/([\w./-]{1,200})\] ")
_JOURNAL = re.compile(
    r"(?:(?:[A-Z][a-z]{2} )?(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,6})?|(?P<iso>"
    + STAMP.replace("(", "(?:").replace("(?:?:", "(?:")
    + r"))(?: [A-Z]{2,5})? )?(?P<host>[\w.-]{1,255} )(?P<who>[\w@./-]{1,100})\[(?P<pid>\d{1,10})\]: "
)
_UPTIME = re.compile(r"\[ {0,11}\d{1,10}\.\d{6}\] (?:[\w.-]{1,255} )?([\w@./-]{1,100})\[(\d{1,10})\]: ")
_SLOG = re.compile(r"\btime=(\S{10,40}) level=(\S{1,12})(?: source=([^\s:]{1,80}):(\d{1,6}))? msg=")
_OLD = re.compile(
    r"(\d{4})/(\d\d)/(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))? (?:([\w.-]{1,80}\.go):(\d{1,6}): )?"
    r"(?:(DEBUG|INFO|WARN|ERROR)(?:[+-]\d{1,2})? )?"
)
_VALUE = r'"(?:[^"\\]|\\.)*"?|\S*'
_FIRST_VALUE = re.compile(_VALUE)
_ATTRIBUTE = re.compile(rf'\s*("(?:[^"\\]|\\.)*"|[^\s="]+)=({_VALUE})')
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))")
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def parse(line: bytes | str, number: int | None = None) -> LogLine:
    """Return what LINE (without its end), the one with NUMBER, says. Never raises."""
    text = line[:LINE_LIMIT].decode("utf-8", "backslashreplace") if isinstance(line, bytes) else line[:LINE_LIMIT]
    carried = _Carried()
    text = _plain(text)
    for _ in range(NESTING):
        inner = _unwrap(text, carried)
        if inner is None:
            break
        text = inner
    return _inside(text, carried, number)


@dataclass
class _Carried:
    """What the carriers said, outermost last word for times: the writer's own time stamp goes before."""

    time: float | None = None
    pid: int | None = None
    origin: str = ""
    names: tuple[str, ...] = ()
    slog: Mapping[str, Any] | None = None  # the fields of slog's JSON handler


def _plain(text: str) -> str:
    text = text.strip("\ufeff\0\r\n")
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return text


def _unwrap(text: str, carried: _Carried) -> str | None:
    """Take one carrier off TEXT and note what it says; None when there is none."""
    if text.startswith("{"):
        return _from_json(text, carried)
    if _SLOG.match(text):
        return None
    for name, pattern in (("cri", _CRI), ("pod", _POD), ("journal", _JOURNAL), ("uptime", _UPTIME)):
        found = pattern.match(text)
        if found is None:
            continue
        if name == "cri":
            carried.time = seconds(found)[0]
        elif name == "pod":
            carried.origin = carried.origin or found[1]
        elif name == "journal":
            carried.pid = int(found["pid"])
            if found["iso"]:
                carried.time = stamp(found["iso"])[0]
        else:
            carried.pid = int(found[2])
        carried.names += (name,)
        return text[found.end() :]
    found = _LEADING.match(text)
    if found is not None and found.end() < len(text):
        carried.time, carried.names = seconds(found)[0], (*carried.names, "timestamp")
        return text[found.end() :]
    found = _COMPOSE.match(text)
    if found is not None:
        carried.origin, carried.names = carried.origin or found[1], (*carried.names, "compose")
        return text[found.end() :]
    return None


def _from_json(text: str, carried: _Carried) -> str | None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return _from_cut_json(text, carried)
    if not isinstance(fields, dict):
        return None
    if isinstance(fields.get("log"), str):  # docker's json-file
        carried.time = stamp(str(fields.get("time", "")))[0]
        carried.names += ("docker",)
        return _plain(fields["log"])
    if "MESSAGE" in fields or "__REALTIME_TIMESTAMP" in fields:
        carried.pid = _whole(fields.get("_PID", fields.get("SYSLOG_PID")))
        micros = _whole(fields.get("__REALTIME_TIMESTAMP"))
        carried.time = micros / 1e6 if micros is not None else None
        unit = fields.get("_SYSTEMD_UNIT") or fields.get("CONTAINER_NAME") or fields.get("UNIT")
        carried.origin = unit[:200] if isinstance(unit, str) else ""
        carried.names += ("journal-json",)
        return _plain(_message(fields.get("MESSAGE")))
    if isinstance(fields.get("msg"), str) and "level" in fields:
        carried.slog = fields
    return None


def _from_cut_json(text: str, carried: _Carried) -> str | None:
    """Return what is left of a JSON line whose end (or beginning of end) is missing."""
    found = re.search(r'"(?:log|MESSAGE)"\s?:\s?"', text)
    if found is None:
        return None
    carried.names += ("cut-json",)
    pid = re.search(r'"_PID"\s?:\s?"(\d{1,10})"', text)
    carried.pid = int(pid[1]) if pid else carried.pid
    inner = re.match(r'(?:[^"\\]|\\.)*', text[found.end() :])
    return _plain(unescape(inner[0])) if inner else None


def _message(value: Any) -> str:
    """Return MESSAGE of the journal's JSON: a string, or a list of byte values when it is not plain text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        return bytes(value[:LINE_LIMIT]).decode("utf-8", "backslashreplace")
    return ""  # null: longer than journalctl shows


def _whole(value: Any) -> int | None:
    text = str(value) if isinstance(value, (str, int)) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _inside(text: str, carried: _Carried, number: int | None) -> LogLine:
    shared = {"pid": carried.pid, "origin": carried.origin, "carriers": carried.names, "number": number}
    if carried.slog is not None:
        return _slog_json(text, carried.slog, carried.time, shared)
    if not text.strip():
        return LogLine(EMPTY, "", carried.time, **shared)  # type: ignore[arg-type]
    if text.startswith("[GIN"):
        return LogLine(REQUEST, text, carried.time, **shared)  # type: ignore[arg-type]
    found = _SLOG.search(text, 0, 4096)
    if found is not None:
        time, offset = stamp(found[1])
        first = _FIRST_VALUE.match(text, found.end())
        message = _value(first[0]) if first else ""
        return LogLine(
            SLOG,
            text[found.start() :],
            time if time is not None else carried.time,
            offset,
            found[2].upper(),
            found[3],
            int(found[4]) if found[4] else None,
            message,
            attributes(text, first.end() if first else found.end()),
            **shared,  # type: ignore[arg-type]
        )
    found = _OLD.match(text)
    if found is not None and (found[8] or found[10]):
        message, rest = _split_old(text[found.end() :])
        return LogLine(
            SLOG,
            text,
            carried.time if carried.time is not None else seconds(found, zoned=False)[0],
            None,
            found[10] or "INFO",
            found[8],
            int(found[9]) if found[9] else None,
            message,
            attributes(rest, 0),
            **shared,  # type: ignore[arg-type]
        )
    return LogLine(OTHER, text, carried.time, **shared)  # type: ignore[arg-type]


def _split_old(text: str) -> tuple[str, str]:
    """Return message and attributes of Go's older format, where nothing separates them."""
    found = re.search(r' (?=(?:"[^"]{1,60}"|[\w.-]{1,60})=)', text[:4096])
    return (text, "") if found is None else (text[: found.start()], text[found.end() :])


def _slog_json(text: str, fields: Mapping[str, Any], outer: float | None, shared: Mapping[str, Any]) -> LogLine:
    time, offset = stamp(str(fields.get("time", "")))
    source = fields.get("source")
    file, line = (source.get("file"), source.get("line")) if isinstance(source, dict) else (None, None)
    rest = {
        str(key): _go_words(value)
        for key, value in list(fields.items())[:ATTRIBUTES]
        if key not in ("time", "level", "msg", "source")
    }
    return LogLine(
        SLOG,
        text,
        time if time is not None else outer,
        offset,
        str(fields["level"]).upper()[:12],
        re.split(r"[/\\]", file)[-1][:80] if isinstance(file, str) and file else None,
        line if isinstance(line, int) and not isinstance(line, bool) else None,
        str(fields["msg"]),
        rest,
        **shared,
    )


def _go_words(value: Any) -> str:
    """Return VALUE as slog's text handler would have written it: [a b], map[k:v]."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{' '.join(map(_go_words, value[:ATTRIBUTES]))}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{_go_words(item)}' for key, item in sorted(value.items())[:ATTRIBUTES])}]"
    return "" if value is None else str(value)


def attributes(text: str, start: int) -> dict[str, str]:
    """Return the key=value pairs of TEXT from START on, as far as they can be read; the first of equal keys stays."""
    found: dict[str, str] = {}
    while len(found) < ATTRIBUTES:
        pair = _ATTRIBUTE.match(text, start)
        if pair is None:
            break
        found.setdefault(_value(pair[1]), _value(pair[2]))
        start = pair.end()
    return found


def _value(text: str) -> str:
    if not text.startswith('"'):
        return text
    return unescape(text[1:-1] if len(text) > 1 and text.endswith('"') else text[1:])


def unescape(text: str) -> str:
    """Return TEXT with Go's (and JSON's) backslash escapes undone; what is no escape stays."""
    return _ESCAPE.sub(_escaped, text) if "\\" in text else text


def _escaped(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    if code is not None:
        number = int(code, 16)
        return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"
    if found[4] is not None:
        return chr(int(found[4], 8))
    return _SIMPLE.get(found[5], found[5])
