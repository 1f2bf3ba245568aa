"""The real gate on a simulated host, with secrets in the environment of the service: none leaves in any report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytest_gpudiscovery.probes import serve

SECRET = "hunter2-planted"
SERVICE = f"""\
OLLAMA_API_KEY={SECRET}
HTTPS_PROXY=http://user:{SECRET}@proxy:3128
AWS_SECRET_ACCESS_KEY={SECRET}
REGISTRY_AUTH='{{"auth": "{SECRET}"}}'
OLLAMA_HOST=127.0.0.1
"""
LINES = (  # as v0.16.3 and v0.32.15 print them: everything that is configured, and a child's whole environment
    f'level=INFO source=routes.go:1663 msg="server config" env="map[HTTPS_PROXY:http://u:{SECRET}@p OLLAMA_DEBUG:1]"',
    f"level=DEBUG source=server.go:431 msg=subprocess PATH=/bin OLLAMA_API_KEY={SECRET}",
)
REPORTS = {"verdict.json", "report.html", "junit.xml", "summary.md", "executor.json", "page.html"}


def test_lines_that_print_an_environment_are_not_kept() -> None:
    log = serve.Log()
    for line in LINES:
        log.line(0.1, line)
    assert len(log.first) == len(LINES)
    assert not [line for line in log.first if SECRET in line]


def test_a_hung_stage_reports_evidence_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "service.env").write_text(SERVICE, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GPU_DISCOVERY_"))}
    given = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_TOKEN": SECRET,
        "GITHUB_STEP_SUMMARY": "out/summary.md",
        "MY_PASSWORD": SECRET,
    }
    asked = ["--gpu-simulate", "h100:hang.cuinit.spin", "--gpu-until", "runtime", "--gpu-stage-timeout", "driver=2"]
    asked += ["--gpu-as", "env:service.env", "--gpu-report", "out", "-v"]
    asked += ["--junitxml", "out/junit.xml", "--alluredir", "out/a", "--html", "out/page.html"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest_gpudiscovery",
            "gate",
            *asked,
        ],
        cwd=tmp_path,
        env={**kept, **given},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BLOCKED at 06 driver" in done.stdout
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= REPORTS
    assert any(path.name.endswith("-attachment.txt") for path in files), "Allure has the evidence"
    assert list((tmp_path / "out" / "evidence").iterdir())
    assert SECRET not in done.stdout + done.stderr
    assert not [str(path) for path in files if SECRET.encode() in path.read_bytes()]
