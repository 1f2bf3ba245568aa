"""The version of an Ollama binary: read from files of every kind, and asked from a program that runs as a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.probes import eras, gobinary
from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import ChildResult, Probe
from tests.install import goelf

INFO = ("path\tgithub.com/ollama/ollama", "mod\tgithub.com/ollama/ollama\t(devel)\t")
FLAGS = 'build\t-ldflags="-w -s \\"-X=github.com/ollama/ollama/version.Version=0.16.3\\" -X=x.y=1"'
CC = shutil.which("cc")


def read(tmp_path: Path, sections: dict[str, bytes], **keywords: Any) -> dict[str, Any]:
    path = tmp_path / "ollama"
    path.write_bytes(goelf.elf(sections, **keywords))
    return gobinary.version(LiveView(), str(path))


@pytest.mark.parametrize(
    ("sections", "version", "by"),
    [
        ({".go.buildinfo": goelf.build_info(*INFO, FLAGS)}, "0.16.3", "ldflags"),
        ({".go.buildinfo": goelf.build_info(*INFO), **goelf.symbols("0.24.0-rc1")}, "0.24.0-rc1", "symbol"),
        ({".go.buildinfo": goelf.build_info(*INFO), **goelf.strings(["go1.24", "0.32.15", "x"])}, "0.32.15", "data"),
        ({".go.buildinfo": goelf.build_info(*INFO), **goelf.strings(["v0.12.3"], pie=False)}, "0.12.3", "data"),
        ({".go.buildinfo": goelf.build_info(*INFO), **goelf.strings(["0.0.0"])}, "0.0.0", "data"),
        ({".go.buildinfo": goelf.build_info(*INFO), **goelf.strings(["0.1.2", "0.1.2"])}, "0.1.2", "data"),
        ({".go.buildinfo": goelf.build_info(*INFO), **goelf.strings(["0.16.3", "1.2.3"])}, None, None),
        ({".go.buildinfo": goelf.build_info(*INFO), **goelf.strings([])}, None, None),
        (goelf.strings(["0.16.3"]), None, None),  # no Go program
    ],
)
def test_the_version_is_read(tmp_path: Path, sections: dict[str, bytes], version: str | None, by: str | None) -> None:
    found = read(tmp_path, sections)
    assert (found["version"], found["by"]) == (version, by)
    if ".go.buildinfo" in sections:
        assert (found["module"], found["go"]) == ("github.com/ollama/ollama", "go1.24.1")


def test_relocations_of_another_kind_are_no_pointers(tmp_path: Path) -> None:
    sections = {".go.buildinfo": goelf.build_info(*INFO), **goelf.strings(["0.16.3"])}
    assert read(tmp_path, sections, machine=183)["version"] is None  # 8 is R_X86_64_RELATIVE only


def test_what_is_no_binary_has_no_version(tmp_path: Path) -> None:
    for data in (b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + bytes(100), b"\x7fELF\x01\x01" + bytes(100)):
        (tmp_path / "x").write_bytes(data)
        assert gobinary.version(LiveView(), str(tmp_path / "x"))["version"] is None
    assert gobinary.version(LiveView(), str(tmp_path / "absent"))["errno"] == "ENOENT"


@given(st.data())
def test_no_bytes_make_it_raise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    sections = {".go.buildinfo": goelf.build_info(*INFO, FLAGS), **goelf.symbols("0.1.2"), **goelf.strings(["1.2.3"])}
    whole = bytearray(goelf.elf(sections))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("elf") / "ollama"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found = gobinary.version(LiveView(), str(path))
    assert set(found) >= {"version", "by", "go", "module"}


@pytest.mark.parametrize(
    ("version", "era"),
    [
        ("0.12.3", "A"),
        ("0.12.4", "B"),
        ("v0.16.3", "B"),
        ("0.24.0", "B"),
        ("0.30.0-rc1", "C"),
        ("0.32.15+dirty", "C"),
        ("1.0.0", "C"),
        ("0.0.0", None),
        ("", None),
        (None, None),
        ("main", None),
        ("0.16", None),
        ("\u0660.\u0661.\u0662", None),
    ],
)
def test_the_era_of_a_version(version: str | None, era: str | None) -> None:
    assert eras.era(version) == era


def test_the_era_of_files() -> None:
    assert eras.of_files(["libggml-base.so", "llama-server"]) == "C"
    assert eras.of_files(["libggml-cpu-haswell.so"]) == "B"
    assert eras.of_files(["README"]) is None


def asked(path: str, size: int | None = None) -> ChildResult:
    request = {"path": path, "size": os.stat(path).st_size if size is None else size}
    return run(Probe("ollama_version", request, {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": "/opt"}, 5.0))


PROGRAM = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv) {
  char exe[256] = {0}, host[64];
  readlink("/proc/self/exe", exe, 255);
  strcpy(host, getenv("OLLAMA_HOST"));
  char *port = strchr(host, ':');
  *port++ = 0;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  inet_aton(host, &at.sin_addr);
  int refused = connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&at, sizeof at) && errno == ECONNREFUSED;
  fprintf(stderr, "exe=%s home=%s path=%s refused=%d\n", exe, getenv("HOME"), getenv("LD_LIBRARY_PATH"), refused);
  if (argc == 2 && !strcmp(argv[1], "--version")) printf("Warning: client version is 0.16.3\n");
  return 0;
}
"""


@pytest.mark.skipif(CC is None, reason="no C compiler")
def test_a_program_is_asked_as_a_copy_that_reaches_nothing_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text(PROGRAM)
    subprocess.run(["cc", "-o", tmp_path / "ollama", tmp_path / "x.c"], check=True)
    answer = asked(str(tmp_path / "ollama")).answer
    assert answer["version"] == "0.16.3"
    assert "exe=/memfd:gpu-discovery/bin/ollama" in answer["said"]
    assert "home=/proc/self/no-home path=(null) refused=1" in answer["said"]


def test_a_program_that_says_nothing_of_use() -> None:
    answer = asked("/bin/true").answer
    assert answer["version"] is None
    assert "ended with 0" in answer["why"]
    assert "ESTALE" in asked("/bin/true", size=1).answer["why"]
