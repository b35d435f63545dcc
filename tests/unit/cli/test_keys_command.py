from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from guard.cli import main
from server.auth.keys import is_key, key_hash


def test_a_new_key_alone_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "newsroom"]) == 0
    output, told = capsys.readouterr()
    assert is_key(output.strip())
    assert yaml.safe_load(told) == [key_hash(output.strip())]
    assert "newsroom" in told
    assert output.strip() not in told
    assert main(["keys", "new", "newsroom", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hash"] == key_hash(found["key"])
    assert found["key"] != output.strip()
    assert main(["keys", "new", "news room"]) == 1


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, policies = tmp_path / "callers.yaml", tmp_path / "policies.yaml"
    news = {"keys": [key_hash("x")], "policy": "lenient", "quota": {"concurrent": 2}}
    path.write_text(yaml.safe_dump({"callers": {"root": {"admin": True}, "news": news}}))
    policies.write_text("policies: {lenient: {threshold: 0.9}}")
    assert main(["keys", "check", str(path), "--policies", str(policies)]) == 0
    said = capsys.readouterr().out
    assert "root (admin)" in said
    assert "concurrent 2" in said
    assert main(["keys", "check", str(path), "--policies", str(policies), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["callers"]["news"]
    assert (shown["keys"], shown["policy"], shown["quota"]) == (1, "lenient", {"concurrent": 2})
    assert main(["keys", "check", str(path)]) == 1
    assert "callers.news.policy: there is no policy of that name" in capsys.readouterr().err
