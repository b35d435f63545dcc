"""The guard command itself: instant help, lazy loading, exit statuses, one clear line for each failure."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import types

import pytest

from guard import cli
from guard.errors import BundleError, InvalidInputError

HEAVY = ("numpy", "onnxruntime", "grpc", "google.protobuf", "tokenizers", "jinja2", "onnx", "torch", "yaml")


@pytest.mark.parametrize("arguments", [["--help"], ["no-such-command"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
from guard.cli import main
main({arguments!r})
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["verify", "plan"])
def test_commands_on_bundles_need_no_grpc(command: str) -> None:
    script = f"""
import sys
from guard.cli import main
main([{command!r}, "/no/such/bundle"])
sys.exit("grpc" in sys.modules or "onnxruntime" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30).returncode == 0


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name:10} {command.summary}" in text


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: guard COMMAND" in capsys.readouterr().out


def test_an_unknown_command_names_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["exprot"]) == 2
    error = capsys.readouterr().err
    assert "'exprot'" in error and "export" in error


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("guardlet ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: guard {name}" in capsys.readouterr().out


def install(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """A command named ``trial`` whose run is ``run``."""
    module = types.ModuleType("trial_command", "Try something.")
    vars(module)["configure"] = lambda parser: parser.add_argument("--json", action="store_true")
    vars(module)["run"] = run
    monkeypatch.setitem(sys.modules, "trial_command", module)
    monkeypatch.setitem(cli.COMMANDS, "trial", cli.Command("trial_command", "export", "try"))


def raising(error: BaseException) -> object:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InvalidInputError("messages[0].content", "is empty"), "guard trial: messages[0].content: is empty\n"),
        (BundleError("model.onnx: SHA-256\ndiffers"), "guard trial: model.onnx: SHA-256 differs\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a.json"),
            "guard trial: a.json: No such file or directory\n",
        ),
    ],
)
def test_a_failure_is_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    install(monkeypatch, raising(error))
    assert cli.main(["trial"]) == 1
    assert capsys.readouterr() == ("", line)


def test_a_failure_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, raising(InvalidInputError("policy.threshold", "expected a number")))
    assert cli.main(["trial", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "error": {
            "type": "InvalidInputError",
            "reason": "INVALID_INPUT",
            "message": "policy.threshold: expected a number",
            "field_violations": [{"field": "policy.threshold", "description": "expected a number"}],
        }
    }


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, raising(KeyboardInterrupt()))
    assert cli.main(["trial"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "trial", cli.Command("no_such_package.cli", "server", "try"))
    assert cli.main(["trial"]) == 1
    assert (
        capsys.readouterr().err
        == "guard trial: needs the Python package no_such_package; pip install 'guardlet[server]'\n"
    )


def test_a_broken_module_of_ours_is_not_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "trial", cli.Command("guard.no_such_module", "server", "try"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["trial"])


def test_a_reader_that_leaves_is_no_traceback() -> None:
    pipeline = f"{sys.executable} -c 'from guard.cli import main; import sys; sys.exit(main([\"--help\"]))' | true"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr
