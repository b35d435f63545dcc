"""The file of a batch: what it expands to, what is refused and where, and that its published schema agrees."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from export.batch import config as config_module
from export.batch.config import MAX_EXPORTS, Batch, load_batch, read_batch
from export.pipeline import ExportRequest
from export.quantize.profile import PROFILES, PURPOSES
from guard.errors import InvalidInputError

SCHEMA = json.loads((Path(config_module.__file__).parent / "exports.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CONFIG = Path("/srv/jobs/exports.yaml")


def read(text: str) -> Batch:
    return read_batch(text, CONFIG)


def refusal(text: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read(text)
    return str(caught.value)


def one(**fields: Any) -> str:
    return yaml.safe_dump({"output": "out", "exports": [{"source": "ck", **fields}]})


def test_the_least_file() -> None:
    batch = read("output: out\nexports:\n  - source: checkpoints/some/model.gguf\n")
    assert (batch.output, batch.max_memory, batch.parallel) == (Path("/srv/jobs/out"), None, None)
    (job,) = batch.jobs
    assert job.name == "model-guard-int8"
    assert job.request == ExportRequest(
        "/srv/jobs/checkpoints/some/model.gguf", Path("/srv/jobs/out/model-guard-int8"), "guard", name=job.name
    )
    assert not job.from_hub


def test_a_complete_file() -> None:
    text = """
output: /var/models
max_memory: 1.5Gi
parallel: 3
defaults: {quantization: [int8, int4], parity: false, task: instruct}
exports:
  - source: org/base
    revision: "1234567"
    adapter: [adapters/a, adapters/b]
    name: "{adapter}-{quantization}"
    model_name: "{adapter}"
    calibration: false
    max_kl: 0.5
  - source: /abs/other
    profile: small
    task: [guard, instruct]
    packed: [false, true]
    parity: true
"""
    batch = read(text)
    VALIDATOR.validate(yaml.safe_load(text))
    assert (batch.output, batch.max_memory, batch.parallel) == (Path("/var/models"), 3 << 29, 3)
    assert [job.name for job in batch.jobs] == [
        *("a-int8", "a-int4", "b-int8", "b-int4"),
        *("other-guard-int4-small", "other-guard-int4-small-packed"),
        *("other-instruct-int4-small", "other-instruct-int4-small-packed"),
    ]
    first, last = batch.jobs[0], batch.jobs[-1]
    assert first.from_hub
    assert first.request == ExportRequest(
        source="org/base",
        out=Path("/var/models/a-int8"),
        task="instruct",
        quantization="int8",
        revision="1234567",
        adapter=Path("/srv/jobs/adapters/a"),
        name="a",
        parity=False,
        calibrate=False,
        max_kl=0.5,
    )
    assert last.request.packed and last.request.parity and last.request.calibrate


def test_a_path_that_is_there_is_no_hub_id(tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    jobs = read_batch("output: out\nexports: [{source: [org/model, org/other]}]", tmp_path / "exports.yaml").jobs
    assert [job.request.source for job in jobs] == [str(tmp_path / "org" / "model"), "org/other"]


def test_an_export_says_it_over_the_defaults() -> None:
    text = "output: o\ndefaults: {profile: speed}\nexports: [{source: a, quantization: int4}, {source: b}]"
    assert [job.request.quantization for job in read(text).jobs] == ["int4", "int8"]


def test_optimum_is_not_quantized_unless_told() -> None:
    assert read(one(exporter="optimum")).jobs[0].request.quantization == "none"
    assert "optimum" in refusal(one(exporter="optimum", quantization="int8"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file: is empty"),
        ("output: [", "the file: not YAML (line 1)"),
        ("output: \0", "the file: not YAML"),
        ("[" * 5000, "the file: not YAML"),
        ("- output", "the file: expected a mapping (line 1)"),
        ("output: o\nexports:\n  - sorce: a", "exports[0].sorce: is unknown; there are: adapter,"),
        ("output: o\nexports:\n  - sorce: a", "(line 3)"),
        ("output: o\nexports:\n- source: a\n  task: guard\n  task: guard", "exports[0].task: is given twice (line 5)"),
        ("output: o\nexports:\n- task: guard", "exports[0].source: is required (line 3)"),
        ("exports: [{source: a}]", "output: is required (line 1)"),
        ("output: o\nexports: []", "exports: expected at least one (line 2)"),
        ("output: o\nexports: {source: a}", "exports: expected a list (line 2)"),
        ("output: o\nexports: [{source: []}]", "exports[0].source: expected at least one (line 2)"),
        ("output: o\nexports:\n- &a {source: x}\n- *a", "aliases are not read; use defaults (line 4)"),
        ("output: ''\nexports: [{source: a}]", "output: is empty (line 1)"),
        ("output: o\n? [a]\n: b", "?: is unknown; there are:"),
        (one(source=5), "exports[0].source: expected text; quote it"),
        (one(quantization=["int8", "int2"]), "exports[0].quantization[1]: expected none or int8 or int4 or int4-small"),
        (one(profile="fast"), "exports[0].profile: expected speed or balanced or small"),
        (one(profile="speed", quantization="int8"), "exports[0].profile: is another word for quantization"),
        (one(task="poetry"), "exports[0].task: expected guard or instruct"),
        (one(packed="yes"), "exports[0].packed: expected true or false"),
        (one(max_kl=-1), "exports[0].max_kl: expected a number of at least 0"),
        (one(max_kl=float("nan")), "exports[0].max_kl: expected a number of at least 0"),
        (one(name="{size}"), "exports[0].name: has no {size}; there are {source}"),
        (one(name="../up"), "exports[0].name: gives '../up': expected up to 128 letters"),
        (one(name="exports.json"), "exports[0].name: gives 'exports.json', which the report is called"),
        (one(model_name="-x"), "exports[0].model_name: expected up to 128 letters"),
        (one(name="same", quantization=["int8", "int4"]), "exports[0]: gives the name same a second time"),
        (one(sign="/nowhere.pem"), "exports[0].sign: /nowhere.pem: No such file"),
        ("output: o\nmax_memory: 6 GB\nexports: [{source: a}]", "max_memory: expected a number with Ki, Mi, Gi"),
        ("output: o\nmax_memory: 0\nexports: [{source: a}]", "max_memory: expected a whole number of at least 1"),
        ("output: o\nparallel: true\nexports: [{source: a}]", "parallel: expected a whole number of at least 1"),
        ("output: !!str [a]\nexports: [{source: a}]", "output: expected text; quote it (line 1)"),
        ("output: o\nparallel: !!int ''\nexports: [{source: a}]", "parallel: cannot be read (line 2)"),
        ("output: o\nexports: [{source: a, packed: !!bool word}]", "exports[0].packed: cannot be read (line 2)"),
        ("output: o\nparallel: !!int word\nexports: [{source: a}]", "parallel: cannot be read (line 2)"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, problem: str) -> None:
    assert problem in refusal(text)


def test_the_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "exports.yaml"
    for content, problem in ((None, "No such file"), (b"\xff", "not UTF-8"), (b"output: o\nx: 1", "x: is unknown")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=problem) as caught:
            load_batch(path)
        assert str(path) in str(caught.value)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InvalidInputError, match="more than"):
        load_batch(path)


def test_a_list_that_is_far_too_long_is_a_slip() -> None:
    sources = [f"s{index}" for index in range(MAX_EXPORTS + 1)]
    assert f"more than {MAX_EXPORTS} exports" in refusal(one(source=sources))


AXES = {
    "source": st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True),
    "task": st.lists(st.sampled_from(["guard", "instruct"]), min_size=1, unique=True),
    "quantization": st.lists(st.sampled_from(sorted(PROFILES)), min_size=1, unique=True),
    "packed": st.lists(st.booleans(), min_size=1, unique=True),
}


@given(st.fixed_dictionaries(AXES))
def test_every_combination_is_there_once(axes: dict[str, list[Any]]) -> None:
    jobs = read(one(**axes)).jobs
    made = {
        (Path(job.request.source).name, job.request.task, job.request.quantization, job.request.packed) for job in jobs
    }
    assert len(jobs) == len(made) == len({job.name for job in jobs})
    for index, key in enumerate(("source", "task", "quantization", "packed")):
        assert {combination[index] for combination in made} == set(axes[key])


def test_the_schema_and_the_reader_know_the_same_keys() -> None:
    assert f"; there are: {', '.join(sorted(SCHEMA['properties']))} (line 1)" in refusal("nothing: 1")


def test_the_schema_and_the_reader_know_the_same_choices() -> None:
    entry = SCHEMA["properties"]["exports"]["items"]["properties"]
    assert f"there are: {', '.join(sorted(entry))} (" in refusal(one(nothing=1))
    defaults = SCHEMA["properties"]["defaults"]["properties"]
    assert set(entry) - set(defaults) == {"source", "revision"}
    assert f"there are: {', '.join(sorted(defaults))} (" in refusal(
        "output: o\ndefaults: {x: 1}\nexports: [{source: a}]"
    )
    assert SCHEMA["$defs"]["one_quantization"]["enum"] == list(PROFILES)
    assert SCHEMA["$defs"]["one_profile"]["enum"] == list(PURPOSES)


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    ["int8", "guard", "speed", "a", "", 1, 0, -1, 0.5, True, None, [], ["int8"], ["a", 1], {}]
)


@given(st.sampled_from(sorted(SCHEMA["properties"]["exports"]["items"]["properties"])), VALUES)
def test_what_the_schema_refuses_is_refused(key: str, value: Any) -> None:
    """The other way round there are checks that a schema cannot make."""
    document = {"output": "o", "exports": [{"source": "a", key: value}]}
    if not VALIDATOR.is_valid(document):
        assert refusal(yaml.safe_dump(document)).startswith(f"exports[0].{key}")


@given(st.text(alphabet="output: exports source[]{}-\n\"'&*!|>%@`#,0159.~\t\x07", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for document in (text, f"output: o\nexports: [{{source: a, name: {text}}}]", f"output: o\nexports: {text}"):
        with suppress(InvalidInputError):
            read(document)
