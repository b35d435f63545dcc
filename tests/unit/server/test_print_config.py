from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from guard.cli import main
from server.print_config import HIDDEN, described
from server.settings import Settings
from server.settings_sources import load_settings


def test_it_says_what_would_be_used_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "guard.yaml"
    config.write_text("guard: models/g\nthreads: 2\nmax_queued: 7\n")
    monkeypatch.setenv("GUARD_THREADS", "3")
    monkeypatch.setenv("GUARD_API_KEY", "canary")  # the client's; not a setting, and not shown
    assert main(["serve", "--config", str(config), "--address", "127.0.0.1:0", "--print-config"]) == 0
    said = capsys.readouterr().out
    lines = dict(line.split(": ", 1) for line in said.splitlines())
    assert lines["guard"].split() == ['"models/g"', "#", str(config)]
    assert lines["threads"].split() == ["3", "#", "environment"]
    assert lines["address"].split() == ['"127.0.0.1:0"', "#", "flags"]
    assert lines["grace_s"].split() == ["30.0", "#", "default"]
    assert "canary" not in said
    values = {name: value for name, value in yaml.safe_load(said).items() if value is not None}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(values))
    again = load_settings({}, {}, tmp_path / "again.yaml")
    assert again == Settings(guard=Path("models/g"), threads=3, max_queued=7, address="127.0.0.1:0")


def test_settings_that_do_not_hold_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--guard", "g", "--address", "0.0.0.0:50051", "--print-config"]) == 1
    assert "without encryption" in capsys.readouterr().err


def test_secrets_are_not_shown() -> None:
    @dataclass(frozen=True)
    class Some:
        database_password: str = "canary"
        access_token: str = "canary"
        hmac_key: str = "canary"
        empty_secret: str = ""
        tls_key: Path = Path("tls.key")
        max_tokens: int = 7

    said = described(Some(), dict.fromkeys(vars(Some()), "flags"))
    assert "canary" not in said
    assert said.count(HIDDEN) == 3
    assert "tls.key" in said
    assert "max_tokens: 7 " in said
