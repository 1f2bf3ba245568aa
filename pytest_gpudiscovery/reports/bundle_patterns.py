"""The patterns of what must not leave a host (bundle_redact.py).

Every one starts at the begin of a word and repeats a bounded number of times: a hostile text of megabytes costs time in
proportion to its length. None of them matches a pseudonym.
"""

from __future__ import annotations

import re

PSEUDONYM = re.compile(r"(?:host|user|gpu|mig|uuid|id|serial|mac|ipv4|ipv6|kernel)-\d{1,6}|<[a-z-]{4,12}>")
# Names that say nothing of anybody, and words that a report cannot do without.
COMMON = frozenset(
    (
        *("root", "nobody", "user", "users", "admin", "administrator", "ubuntu", "debian", "ollama", "nvidia", "cuda"),
        *("gpu", "gpus", "cpu", "linux", "localhost", "host", "home", "main", "test", "tests", "max", "min", "run"),
        *("bin", "lib", "dev", "etc", "opt", "usr", "var", "tmp", "proc", "sys", "kernel", "driver", "library", "none"),
        *("null", "true", "false", "stage", "evidence", "passed", "failed", "default", "any", "python", "pytest"),
        *("daemon", "service", "system", "simulated", "unknown", "container", "and", "the", "for", "not", "was"),
        *("with", "this", "that", "from", "uuid", "mig", "serial", "mac", "ipv4", "ipv6", "secret", "token", "email"),
        *("credentials", "private", "key", "http", "https", "info", "debug", "error", "level", "source", "msg"),
    )
)
PUBLIC = re.compile(
    r"(?:[\w-]+\.)*(?:github\.com|githubusercontent\.com|nvidia\.com|ollama\.com|ollama\.ai|kernel\.org|python\.org|"
    r"freedesktop\.org|readthedocs\.io|huggingface\.co|archlinux\.org|json-schema\.org|microsoft\.com)|localhost"
)
HEX = "[0-9a-fA-F]"

PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,16384}?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", re.DOTALL
)
_WORDS = (
    r"(?:(?i:pass(?:word|wd|phrase)|secret|token|credential|cookie|api[_-]?key|access[_-]?key|private[_-]?key|"
    r"auth(?:orization)?(?![a-z])|session[_-]?id)|"
    r"(?<![A-Za-z])(?:KEY|TOKEN|SECRET|PASSWORD|PASS|PWD|PSK|AUTH|CREDS?)(?![A-Za-z]))"
)
SECRET_NAME = re.compile(_WORDS)
NOT_SECRET = frozenset({"PWD", "OLDPWD"})  # directories
# NAME=VALUE at the begin of a line is an environment: all of the line is the value.
ENV_LINE = re.compile(rf"(?m)^(?=\w{{0,128}}?{_WORDS})(?P<name>[A-Za-z_]\w{{0,127}})(?P<sign>=)(?P<value>[^\n]*)")
ASSIGNED = re.compile(
    rf"(?<![\w.-])(?=[\w.-]{{0,128}}?{_WORDS})(?P<name>[A-Za-z_][\w.-]{{0,127}})"
    r"(?P<sign>\\?[\"']?\s{0,3}(?:=>?|:)\s{0,3})"
    r"(?P<value>\\\"[^\"\n]{0,4096}\"|\"(?:[^\"\\\n]|\\.){0,4096}\"|'(?:[^'\\\n]|\\.){0,4096}'|"
    r"(?:(?i:bearer|basic|token|digest)\s{1,3})?\S{1,4096})"
)
OPTION = re.compile(
    rf"(?<![\w-])(?=--?[\w-]{{0,64}}?{_WORDS})(?P<name>--?[A-Za-z][\w-]{{0,64}})(?P<sign>\s{{1,3}})(?P<value>[^\s-]\S{{0,4096}})"
)
BEARER = re.compile(r"(?i)(?<!\w)(?P<name>bearer|basic)\s{1,3}(?P<value>[\w.~+/=-]{12,4096})")
TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_\w{10,256}|sk-[\w-]{16,256}|gh[pousr]_\w{16,256}|github_pat_\w{20,256}|glpat-[\w-]{16,256}|"
    r"(?:AKIA|ASIA)[0-9A-Z]{12,32}|xox[abeoprs]-[\w-]{10,256}|AIza[\w-]{30,64}|npm_\w{20,256}|pypi-[\w-]{20,512}|"
    r"nvapi-[\w-]{16,256}|ya29\.[\w-]{16,512}|dop_v1_\w{20,256}|eyJ[\w-]{6,4096}\.[\w-]{4,8192}(?:\.[\w-]{0,4096})?|"
    r"ssh-(?:rsa|ed25519|dss) [A-Za-z0-9+/=]{20,8192})"
)
USER_INFO = re.compile(r"(?<![A-Za-z0-9])([A-Za-z][A-Za-z0-9+.-]{0,30}://)(?!<credentials>@)[^\s/\"'<>]{1,1024}@")
EMAIL = re.compile(
    r"(?<![\w.+%@-])[\w.+%-]{1,64}@(?!lib)(?:[A-Za-z0-9-]{1,63}\.){1,8}"
    r"(?!(?:service|socket|slice|timer|target|mount|device|scope|so|path)\b)[A-Za-z]{2,24}\b(?!\.?\d)"
)
UUID = re.compile(
    rf"(?<![A-Za-z0-9])(?P<kind>(?:MIG-GPU|GPU|MIG)-)?"
    rf"(?P<digits>{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}|{HEX}{{32}})(?![A-Za-z0-9])"
)
# CUDA reads dashes anywhere, and nothing of what follows the 32nd digit (stages/visible.py).
SPELLED_UUID = re.compile(
    rf"(?<![A-Za-z0-9])(?P<kind>(?i:MIG-GPU|GPU|MIG)-)-{{0,4}}(?P<digits>{HEX}(?:-{{0,4}}{HEX}){{7,63}})"
)
SHORT_UUID = re.compile(  # CUDA_VISIBLE_DEVICES takes the begin of one
    rf"(?<![A-Za-z0-9])(?P<kind>(?:MIG-GPU|GPU|MIG)-)(?P<digits>{HEX}{{4,12}}(?:-{HEX}{{1,12}}){{0,4}})(?![\w-])"
)
SERIAL = re.compile(
    r"(?i)(?P<name>(?<![a-z])(?:serial(?:[ _-]?(?:number|no))?|GPU PDI|chassis[ _]sn)"
    r"[\"']?\s{0,40}[:=]\s{0,3}[\"']?)(?P<value>[\w-]{4,64})"
)
MAC = re.compile(rf"(?<![\w:])(?:{HEX}{{2}}:){{5}}{HEX}{{2}}(?![\w:])")
IPV6 = re.compile(rf"(?<![\w:.])(?:{HEX}{{0,4}}:){{2,8}}(?:(?:\d{{1,3}}\.){{3}}\d{{1,3}}|{HEX}{{1,4}})?(?![\w:])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d|\w)")
URL_HOST = re.compile(
    r"(?<![A-Za-z0-9])(?P<begin>[A-Za-z][A-Za-z0-9+.-]{0,30}://(?:<credentials>@)?)(?P<host>[A-Za-z0-9][\w.-]{0,253})"
)
PRIVATE_HOST = re.compile(
    r"(?<![\w./-])(?:[\w-]{1,63}\.){1,8}(?:internal|lan|corp|intranet|localdomain|local)(?![\w.]|-)|"
    r"(?<![\w./-])ip-\d{1,3}-\d{1,3}-\d{1,3}-\d{1,3}(?![\w-])"
)
HOSTS = (
    re.compile(  # of syslog
        r"(?m)^(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}|\d{4}-\d\d-\d\dT\S{8,32}) (?P<name>[\w.-]{1,253}) "
        r"(?=[\w./()-]{1,64}(?:\[\d{1,10}\])?:)"
    ),
    re.compile(
        r"(?i)(?<![a-z0-9])(?:hostname|nodename|host[ _]name|node[ _]name)[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
        r"(?P<name>[\w.-]{1,253})"
    ),
    re.compile(r"(?<!\S)[a-z_][\w-]{0,31}@(?P<name>[\w-]{1,63}):[~/]"),  # of a shell's prompt
)
HOME = re.compile(r"(?<=/)(?P<place>home|Users|users|scratch)/(?P<name>[^/\s'\":;,)\]}<>|*?\\\0]{1,255})")
USERS = (
    HOME,
    re.compile(r"(?<![A-Za-z0-9_])(?:USER|LOGNAME|SUDO_USER|USERNAME|User)=[\"']?(?P<name>\w[\w.-]{0,63})"),
    re.compile(r"(?<!\w)[ug]id=\d{1,10}\((?P<name>[\w.-]{1,64})\)"),  # of id(1)
    re.compile(r"(?<!\S)(?P<name>[a-z_][\w-]{0,31})@[\w-]{1,63}:[~/]"),
)
SERIAL_KEY = re.compile(r"(?i)(?:^|[ _-])(?:serial(?:[ _-]?(?:number|no))?|pdi)$")
NAME_KEYS = {  # of JSON: whose value is a name
    **dict.fromkeys(("user", "username", "USER", "LOGNAME", "SUDO_USER", "USERNAME"), "user"),
    **dict.fromkeys(("hostname", "nodename", "HOSTNAME"), "host"),
}
RELEASE_WORDS = re.compile(  # of a kernel's release: digits, and what distributions write there
    r"\d+|generic|amd64|x86|64|arm64|aarch64|aws|azure|gcp|gke|oracle|cloud|el\d+\w*|fc\d+|rt\d*|lts|arch\d*|default|"
    r"deb\d+\w*|bpo\w*|lowlatency|hwe|tegra|microsoft|standard|WSL2|zen|cachyos|nvidia|ubuntu|custom|uek|smp|pve|rc\d+"
)
