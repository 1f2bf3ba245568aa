"""What must not leave a host: planted secrets never appear, equal things get equal names, twice changes nothing."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.reports.bundle_redact import Redactor, kernel_suffix

LETTERS = string.ascii_letters + string.digits
WORD = st.text(LETTERS, min_size=20, max_size=40).filter(lambda text: not text.isdigit())
HEX = "0123456789abcdef"


def _hex(length: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=length, max_size=length).filter(lambda text: bool(text.strip("0")))


NAMES = st.sampled_from(
    [
        "OLLAMA_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "MY_PASS",
        "REGISTRY_AUTH",
        "token",
        "api-key",
    ]
)
UUIDS = st.builds("-".join, st.tuples(_hex(8), _hex(4), _hex(4), _hex(4), _hex(12)))
# kind -> (what is secret, a text around it)
PLANTED: dict[str, tuple[st.SearchStrategy[str], Callable[[str, str], str]]] = {
    "assignment": (WORD, lambda secret, name: f"x {name}={secret} y"),
    "environment": (WORD, lambda secret, name: f"a=1\n{name.replace('-', '_')}=two words {secret}\nb=2"),
    "json": (WORD, lambda secret, name: json.dumps({name: secret, "other": 1})),
    "json in json": (WORD, lambda secret, name: json.dumps({"text": json.dumps({name: f"a {secret}"})})),
    "repr": (WORD, lambda secret, name: repr({name: secret, "k": [1, 2]})),
    "yaml": (WORD, lambda secret, name: f"  {name}: {secret}"),
    "option": (WORD, lambda secret, _: f"serve --api-key {secret} --port 1"),
    "bearer": (WORD, lambda secret, _: f"Authorization: Bearer {secret}"),
    "url": (WORD, lambda secret, _: f"proxy http://me:{secret}@127.0.0.1:3128/x"),
    "hugging face": (WORD.map("hf_{}".format), lambda secret, _: f"with {secret}."),
    "openai": (WORD.map("sk-{}".format), lambda secret, _: f"'{secret}'"),
    "github": (WORD.map("ghp_{}".format), lambda secret, _: f"({secret})"),
    "aws": (
        st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16).map("AKIA{}".format),
        lambda s, _: s,
    ),
    "jwt": (st.tuples(WORD, WORD, WORD).map("eyJ{0[0]}.eyJ{0[1]}.{0[2]}".format), lambda secret, _: f"<{secret}>"),
    "private key": (WORD, lambda s, _: f"-----BEGIN RSA PRIVATE KEY-----\n{s}\n-----END RSA PRIVATE KEY-----"),
    "e-mail": (st.builds("{}@{}.example.org".format, WORD, WORD), lambda secret, _: f"mail {secret}, please"),
    "gpu": (UUIDS, lambda secret, _: f"ID: GPU-{secret}"),
    "mig": (UUIDS, lambda secret, _: f"CUDA_VISIBLE_DEVICES=MIG-{secret}"),
    "old mig": (UUIDS, lambda secret, _: f"MIG-GPU-{secret}/3/0"),
    "bare uuid": (UUIDS, lambda secret, _: f'"uuid": "{secret}"'),
    "short uuid": (_hex(8), lambda secret, _: f"CUDA_VISIBLE_DEVICES=GPU-{secret}"),
    "machine id": (_hex(32), lambda secret, _: f"machine-id {secret}"),
    "serial": (st.integers(10**12, 10**13 - 1).map(str), lambda secret, _: f"    Serial Number      : {secret}"),
    "pdi": (_hex(16).map("0x{}".format), lambda secret, _: f"    GPU PDI            : {secret}"),
    "mac": (st.lists(_hex(2), min_size=6, max_size=6).map(":".join), lambda secret, _: f"ether {secret} x"),
    "ipv4": (
        st.ip_addresses(v=4).filter(lambda a: not a.is_loopback and not a.is_unspecified).map(str),
        lambda s, _: f"to {s}:80",
    ),
    "ipv6": (
        st.ip_addresses(v=6).filter(lambda a: not a.is_loopback and not a.is_unspecified).map(str),
        lambda s, _: f"[{s}]:80",
    ),
    "host in url": (WORD.map("{}.example.org".format), lambda secret, _: f"https://{secret}:8443/v2/"),
    "internal host": (WORD.map("{}.internal".format), lambda secret, _: f"from {secret} to"),
    "syslog host": (WORD, lambda secret, _: f"Feb 25 08:54:04 {secret} ollama[77]: hello"),
    "named host": (WORD, lambda secret, _: f'"hostname": "{secret}"'),
    "home": (WORD, lambda secret, _: f'open("/home/{secret}/.nv/x") failed'),
    "id": (WORD, lambda secret, _: f"uid=1000({secret}) gid=1000({secret})"),
    "user": (WORD, lambda secret, _: f"USER={secret}"),
}


@pytest.mark.parametrize("kind", PLANTED)
@settings(max_examples=8)
@given(data=st.data())
def test_a_planted_secret_never_appears(kind: str, data: st.DataObject) -> None:
    strategy, around = PLANTED[kind]
    secret = data.draw(strategy)
    text = around(secret, data.draw(NAMES))
    redactor = Redactor()
    once = redactor.text(f"before it\n{text}\nafter it")
    assert secret.lower() not in once.lower()
    assert once.startswith("before it\n")
    assert once.endswith("\nafter it")
    assert sum(redactor.counts.values())
    assert redactor.text(once) == once
    assert Redactor().text(once) == once


SOUP = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            [
                "password=",
                "GPU-",
                "://",
                "@",
                "/home/",
                ":",
                '"',
                "\\",
                "\n",
                "=",
                "ab:cd:",
                "1.2.3.4",
                "hostname: x",
                "user-1",
            ]
        ),
        UUIDS,
        WORD,
    ),
    max_size=12,
).map("".join)


@settings(max_examples=60)
@given(text=SOUP)
def test_redacting_twice_changes_nothing_whatever_the_text(text: str) -> None:
    redactor = Redactor()
    once = redactor.text(text)
    assert redactor.text(once) == once


def test_equal_things_get_equal_names_in_whatever_form() -> None:
    redactor = Redactor()
    redactor.know("host", "node7.example.org")
    texts = [
        "GPU-01234567-89AB-cdef-0123-456789abcdef on node7",
        "id 0123456789abcdef0123456789abcdef of NODE7.example.org, seen by /home/alice/x",
        "CUDA_VISIBLE_DEVICES=GPU-01234567 and GPU-ffffffff-89ab-cdef-0123-456789abcdef; alice ran it",
    ]
    assert [redactor.text(text) for text in texts] == [
        "gpu-1 on host-1",
        "id gpu-1 of host-1, seen by /home/user-1/x",
        "CUDA_VISIBLE_DEVICES=gpu-1 and gpu-2; user-1 ran it",
    ]
    assert {kind: different for kind, _, different in redactor.told()} == {"gpu": 2, "host": 1, "user": 1}


@pytest.mark.parametrize(
    "spelled",
    [
        "GPU-0123456789abcdef0123456789abcdefx",
        "GPU-01234567-89ab-cdef-0123-456789abcdef0",
        "GPU-01234567-89ab-cdef-0123-456789abcdef:0",
        "gpu-01234567-89ab-cdef-0123-456789abcdefz",
        "GPU-0-1-2-3-4-5-6-7",
        "GPU--01234567-89ab-cdef-0123-456789abcdef",
        "GPU-01234567z",
        "gpu-0123456789",
    ],
)
def test_a_uuid_in_a_spelling_that_cuda_takes_or_nearly_takes(spelled: str) -> None:
    redactor = Redactor()
    assert redactor.text("GPU-01234567-89ab-cdef-0123-456789abcdef") == "gpu-1"
    said = redactor.text(f"CUDA_VISIBLE_DEVICES={spelled}")
    assert said.replace("GPU--", "").rstrip("xz:0") == "CUDA_VISIBLE_DEVICES=gpu-1"
    alone = Redactor().text(spelled)
    assert "4567" not in alone
    assert "4-5" not in alone


@pytest.mark.parametrize(
    "text",
    [
        "driver 580.159.04 at 0000:00:06.0, libcublas.so.12.8.4.1, VBIOS 96.00.74.00.01",
        "127.0.0.1:11434 [::1] 0.0.0.0 03:16:37.327 08:01",
        "undefined symbol: __cudaRegisterFatBinary@@libcudart.so.12, std::vector",
        "GPU-00000000-0000-0000-0000-000000000000",
        "https://github.com/ollama/ollama/issues/13308 https://docs.nvidia.com/deploy/xid-errors/index.html",
        "ollama@tty.service PWD=/usr/lib monkey=1 turkey: 2 author=me",
        "195:255 /dev/nvidia0 0666 uid 65534 sm_90 compute_90",
        "7f1c2e400000-7f1c2e421000 r-xp 00000000 08:01 131090 /usr/lib/x86_64-linux-gnu/libc.so.6",
    ],
)
def test_what_a_diagnosis_needs_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_json_keeps_its_shape() -> None:
    data: dict[str, Any] = {
        "token": "a" * 30,
        "pids": [1, 2.5, None, True],
        "text": "/home/alice/x",
        "user": "alice",
        "n": {"k": "alice"},
        "gpu": {"serial": 1320012345678, "board_serial": "1320012345679"},
    }
    assert Redactor().value(data) == {
        "token": "<secret>",
        "pids": [1, 2.5, None, True],
        "text": "/home/user-1/x",
        "user": "user-1",
        "n": {"k": "user-1"},
        "gpu": {"serial": "serial-1", "board_serial": "serial-2"},
    }


def test_what_somebody_put_into_a_kernels_release_is_found() -> None:
    assert kernel_suffix("6.18.5-generic-mycluster7") == ("mycluster7",)
    assert kernel_suffix("5.15.0-1053-aws") == kernel_suffix("5.14.0-427.el9.x86_64") == ()
