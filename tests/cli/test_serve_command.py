"""vitune serve: a user's mistakes are one line and exit code 2."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from vitune import extras
from vitune.cli import _serving, run


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command is refused with."""
    assert run(["serve", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("vitune: error: ")
    return said.err


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    for folder in (empty, broken / "one"):
        folder.mkdir(parents=True)
    cases = {
        (tmp_path / "none",): "expected a folder with one subfolder per run or adapter",
        (empty,): "without a run or adapter in its subfolders",
        (broken, "--backbone", "vitune/vit_micro_patch4_32"): "none of which can be served",
        (empty, "--backbone", "vit_micro"): "backbone: got 'vit_micro'",
        (empty, "--cache-mib", "-1"): "--cache-mib: got -1.0, expected at least 0",
        (empty, "--cache-mib", "1e12"): "that are free on this machine",
        (empty, "--cache-mib", "much"): "--cache-mib",
        (empty, "--port", "70000"): "--port: got 70000, expected 0 to 65535",
        (empty, "--host", "203.0.113.7"): "--port: got 8000 on '203.0.113.7'",
        (empty, "--max-batch", "0"): "--max-batch: got 0, expected at least 1",
        (empty, "--rate-limit", "-1"): "--rate-limit: got -1.0",
        (empty, "--ray", "local", "--replicas", "0"): "--replicas: got 0",
        (empty, "--token-file", tmp_path / "no"): "expected a file with the token",
    }
    for arguments, reason in cases.items():
        port = () if "--port" in arguments or "--host" in arguments else ("--port", 0)
        assert reason in refused(capsys, *arguments, *port), arguments


def test_a_port_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused(capsys, tmp_path, "--port", port)
    assert f"--port: got {port} on '127.0.0.1', expected one that is free" in told


def test_a_missing_extra(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name)
    )
    told = refused(capsys, tmp_path)
    assert "without uvicorn" in told and "pip install 'vitune[serve]'" in told


def test_a_token_is_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text("from-the-file\n")
    assert _serving.token_of(None) is None
    monkeypatch.setenv(_serving.TOKEN, "from-the-environment")
    assert _serving.token_of(None) == "from-the-environment"
    assert _serving.token_of(str(file)) == "from-the-file"
    file.write_text("short")
    assert "got a token of 5 characters" in refused(capsys, tmp_path, "--token-file", file)
