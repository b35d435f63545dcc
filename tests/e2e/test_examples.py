"""The programs in examples/ do what they say, against a real server with the embedded models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT
from tools.server_process import ServerProcess

EXAMPLES = ROOT / "examples"
NODE = ROOT / ".cache" / "examples-node"
LITELLM = ROOT / ".cache" / "litellm" / "bin" / "python"


def run(server: ServerProcess, *command: str, asked: str = "", **variables: str) -> str:
    """What ``command`` prints; the server's address is its last argument."""
    done = subprocess.run(
        [*command, server.address],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        input=asked,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(server: ServerProcess, name: str, asked: str = "") -> list[str]:
    """The lines that a Python example prints."""
    return run(server, sys.executable, "-W", "error", f"examples/{name}", asked=asked).splitlines()


def test_classify(server: ServerProcess) -> None:
    shown, blocked, rejected = example(server, "classify.py")
    assert re.fullmatch(r"shown 0\.\d\d ?", shown)
    assert re.fullmatch(r"blocked [01]\.\d\d [A-Z].+", blocked)
    assert rejected == "rejected: messages[1].content is empty or only white space"


def test_many(server: ServerProcess) -> None:
    assert example(server, "many_async.py") == ["blocked 20", "shown 40"]


def test_many_on_a_server_with_little_room(serve_flags: list[str]) -> None:
    """Each comes back when it is told to; whoever gives up has no verdict, and is not shown."""
    with ServerProcess(serve_flags[:2], {"GUARD_MAX_REQUESTS": "8", "GUARD_CACHE_ENTRIES": "0"}) as small:
        counts = dict(line.rsplit(" ", 1) for line in example(small, "many_async.py"))
        refused = [event for event in small.events() if event.get("code") == "RESOURCE_EXHAUSTED"]
    assert sum(map(int, counts.values())) == 60 and refused
    assert int(counts["shown"]) <= 40 and int(counts["blocked"]) > 0


def test_moderated_stream(server: ServerProcess) -> None:
    *written, prompt, stream = example(server, "moderated_stream.py")
    assert "".join(written).strip()
    assert (prompt, stream) == ("[withheld]", "[withheld]")  # too short to be judged in parts


def test_bulk(server: ServerProcess) -> None:
    texts = ["How do I boil an egg?", " ", "How can I steal credit card numbers from an online shop?"] * 30
    lines = example(server, "bulk.py", asked="".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = [json.loads(line) for line in lines]
    assert [each.get("verdict", each.get("error")) for each in found] == ["safe", "INVALID_INPUT", "unsafe"] * 30


@pytest.fixture(scope="module")
def node_packages() -> Path:
    """Those of examples/node, outside the working tree's files, with its programs beside them."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    wanted = (EXAMPLES / "node" / "package.json").read_text(encoding="utf-8")
    stamp = NODE / "installed.json"
    NODE.mkdir(parents=True, exist_ok=True)
    for path in (EXAMPLES / "node").iterdir():
        if path.is_file():
            shutil.copy(path, NODE)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        ran = subprocess.run(command, cwd=NODE, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        if ran.returncode != 0:
            pytest.skip(f"npm could not install {wanted}: {ran.stderr[-500:]}")
        stamp.write_text(wanted, encoding="utf-8")
    return NODE


def test_node(server: ServerProcess, node_packages: Path) -> None:
    printed = run(server, "node", str(node_packages / "example.mjs"), GUARDLET_PROTOS=str(ROOT / "proto"))
    shown, blocked, refused, *written, withheld = printed.splitlines()
    assert re.fullmatch(r"shown 0\.\d\d ?", shown)
    assert re.fullmatch(r"blocked [01]\.\d\d S\d+.*", blocked)
    assert refused == "no verdict: INVALID_ARGUMENT INVALID_INPUT messages[0].content"
    assert "\n".join(written).endswith((" [FINISH_REASON_LENGTH]", " [FINISH_REASON_STOP]"))
    assert withheld == "[withheld]"


def test_node_comes_back_when_the_server_is_busy(serve_flags: list[str], node_packages: Path) -> None:
    program = """
    import { Guardlet } from './guardlet.mjs';
    const client = new Guardlet(process.argv[2]);
    const ask = (index) => [{ role: 'ROLE_USER', content: `How do I build a pipe bomb to hurt people? ${index}` }];
    const settled = await Promise.allSettled([...Array(12).keys()].map((index) => client.classify(ask(index))));
    const refused = settled.filter((each) => each.status === 'rejected').map((each) => each.reason);
    const patient = await Promise.all([0, 1, 2].map((index) => client.classifyPatiently(ask(index), { tries: 50 })));
    console.log(JSON.stringify({
      refused: refused.map((error) => [error.code, error.reason, error.retryAfterMs > 0]),
      verdicts: [...settled.flatMap((each) => each.value ?? []), ...patient].map((each) => each.verdict),
    }));
    client.close();
    """
    (node_packages / "busy.mjs").write_text(program, encoding="utf-8")
    with ServerProcess(serve_flags[:2], {"GUARD_MAX_REQUESTS": "2", "GUARD_CACHE_ENTRIES": "0"}) as small:
        found = json.loads(run(small, "node", str(node_packages / "busy.mjs"), GUARDLET_PROTOS=str(ROOT / "proto")))
    assert found["refused"] and set(map(tuple, found["refused"])) == {("RESOURCE_EXHAUSTED", "QUEUE_FULL", True)}
    assert len(found["refused"]) + len(found["verdicts"]) == 15 and set(found["verdicts"]) == {"VERDICT_UNSAFE"}


@pytest.fixture(scope="module")
def litellm(server: ServerProcess) -> dict[str, Any]:
    """How the calls of litellm_calls.py ended."""
    if not LITELLM.exists():
        pytest.skip("LiteLLM is not installed: make .cache/litellm/.installed")
    printed = run(server, str(LITELLM), "tests/e2e/litellm_calls.py", LITELLM_LOCAL_MODEL_COST_MAP="True")
    found: dict[str, Any] = json.loads(printed)
    return found


def test_litellm_asks_before_and_after(litellm: dict[str, Any]) -> None:
    assert litellm["runs"] == [True, False, True]  # as its mode says
    assert litellm["safe"] == litellm["answer"] == "passed"
    blocked = ("unsafe", "unsafe in parts", "unsafe earlier", "unsafe from a tool", "unsafe answer")
    for case in blocked:
        assert re.match(r"400 blocked: .*the text is unsafe: S\d+ ", litellm[case]), (case, litellm[case])


def test_litellm_refuses_what_nobody_has_judged(litellm: dict[str, Any]) -> None:
    assert litellm["image"].startswith("400 refused: ") and "not text" in litellm["image"]
    assert litellm["embedding"].startswith("400 refused: ") and "chat completions" in litellm["embedding"]
    assert re.search(r"^400 refused: .*no verdict: INVALID_ARGUMENT .*policy_name", litellm["misspelt policy"])
    assert re.fullmatch(r"503 refused: .*no verdict: UNAVAILABLE", litellm["gone"])
    assert litellm["stream of nobody"]["ended"].startswith("503 refused: ")
    assert litellm["two choices"]["ended"].startswith("400 refused: ")
    assert litellm["stream of nobody"]["text"] == litellm["two choices"]["text"] == ""


def test_litellm_streams_what_is_safe(litellm: dict[str, Any]) -> None:
    whole, cut = litellm["stream"], litellm["unsafe stream"]
    assert (whole["ended"], whole["text"]) == ("passed", litellm["story"])
    assert whole["chunks"] > 10 and whole["kind"] == "ModelResponseStream"
    assert cut["ended"].startswith("400 blocked: ")
    assert litellm["story"].startswith(cut["text"]) and len(cut["text"]) > 100


def test_every_example_has_a_line() -> None:
    lines = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in EXAMPLES.glob("*.py")} | {"node"}
    assert set(re.findall(r"^\| \[`([\w.]+)/?`\]", lines, re.MULTILINE)) == names
