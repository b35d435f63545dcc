"""The results as Markdown: for the documents, and a short form for the README."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.speed.reach import goals, medians, ours_and_best_peer

_TEAMS = (
    ("guard", "Classify, 1B shape", ("guard",)),
    ("instruct", "Generate, 1B shape", ("instruct",)),
    ("guard", "Classify, SmolLM2", ("smollm2", "guard")),
    ("instruct", "Generate, SmolLM2", ("smollm2", "instruct")),
)


def document(results: Mapping[str, Any]) -> str:
    """All of it. Parts that were not measured are left out."""
    parts = [_head(results), _goals(results)]
    for _, title, path in _TEAMS:
        part = _at(results, path)
        if part:
            parts.append(_team(title, part))
    parts += [_roofline(results), _services(results), _floors(results), _exports(results), _how()]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(results: Mapping[str, Any]) -> str:
    """A table for the README: ours beside the fastest peer."""
    rows = []
    for part, workload in (
        ("guard", "classify 40, warm"),
        ("guard", "classify 400, warm"),
        ("instruct", "prefill 128"),
        ("instruct", "prefill 512"),
        ("instruct", "decode, 1 at once"),
        ("instruct", "decode, 8 at once"),
    ):
        both = ours_and_best_peer(results.get(part, {}), workload)
        if both:
            mine, peer, other = both
            name = _workload(workload, results[part]["workloads"][workload]["tokens"])
            rows.append([name, f"{mine:,.0f} ms", f"{other:,.0f} ms, {peer}", f"{other / mine:.1f}x"])
    return f"{_table(['1B shape, medians', 'Guardlet', 'fastest peer', ''], rows)}\n\n{_machine(results)}"


def _head(results: Mapping[str, Any]) -> str:
    return f"""# Speed beside other engines

{_machine(results)}

Every engine runs in a process of its own with the same number of threads, on the same weights and token ids;
engines take turns within each round. Medians, with the quarters around them. `make bench` measures it again (about
45 minutes once the peers are installed).

![classify beside the peers](speed.svg)"""


def _machine(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    instructions = ", ".join(machine["instructions"])
    return (
        f"{machine['cpus']} x {machine['cpu']} ({instructions}), {machine['memory_gib']:g} GiB;"
        f" {machine['threads']} threads; Linux {machine['kernel']}, Python {machine['python']},"
        f" ONNX Runtime {machine['onnxruntime']}."
    )


def _goals(results: Mapping[str, Any]) -> str:
    marks = {True: "yes", False: "no", None: ""}
    rows = [[goal.name, goal.wanted, goal.measured, marks[goal.reached]] for goal in goals(results)]
    table = _table(["", "aimed at", "measured", "reached"], rows)
    return f"## Aims\n\n{table}\n\nWhat keeps the others from being reached: [0165](../decisions/0165-limits.md)."


def _team(title: str, part: Mapping[str, Any]) -> str:
    engines = list(dict.fromkeys(name for row in part["workloads"].values() for name in row["ms"]))
    rows = []
    for workload, row in part["workloads"].items():
        fastest = min(medians(part, workload).values(), default=0.0)
        cells = [_cell(row["ms"].get(engine), fastest) for engine in engines]
        rows.append([_workload(workload, row["tokens"]), *cells])
    usage = part["memory"]
    for label, kind, field in (
        ("MiB loaded, anonymous", "loaded", "anonymous"),
        ("MiB loaded, file-backed", "loaded", "file_backed"),
        ("MiB at the end, anonymous", "steady", "anonymous"),
        ("MiB at the end, file-backed", "steady", "file_backed"),
    ):
        rows.append([label, *(f"{usage[engine][kind][field]:,.0f}" if engine in usage else "" for engine in engines)])
    rows.append(
        ["MiB at most", *(f"{usage[engine]['most_resident']:,.0f}" if engine in usage else "" for engine in engines)]
    )
    loads = part["load_s"]
    rows.append(["seconds to load", *(f"{loads[engine]:.1f}" if engine in loads else "" for engine in engines)])
    text = f"## {title}\n\n{_table(['ms (p25 to p75)', *engines], rows)}"
    if part["skipped"]:
        text += "\n\nLeft out:\n\n" + "\n".join(f"- {name}: {reason}" for name, reason in part["skipped"].items())
    return text


def _cell(spread: Mapping[str, float] | None, fastest: float) -> str:
    if spread is None:
        return ""
    text = f"{spread['median']:,.0f}"
    text = f"**{text}**" if spread["median"] == fastest else text
    return f"{text} ({spread['p25']:,.0f} to {spread['p75']:,.0f})"


def _workload(name: str, tokens: int) -> str:
    return f"{name} ({tokens:,} tokens)" if name.startswith(("classify", "decode")) else name


def _roofline(results: Mapping[str, Any]) -> str:
    roofline = results.get("roofline")
    if not roofline:
        return ""
    rows = [[f"{rows} rows", f"{rate:,.0f}"] for rows, rate in roofline["int8_gmac_s"].items()]
    shapes = ", ".join(f"{name} {rate:,.0f}" for name, rate in roofline["int8_by_shape"].items())
    return (
        f"## What the machine can do\n\n{roofline['threads']} threads read memory at {roofline['read_gb_s']:.1f} GB/s."
        f" Unsigned by signed 8-bit products of the 1B's shapes through ONNX Runtime, billions of multiply-adds\n"
        f"a second:\n\n"
        f"{_table(['a layer together', 'GMAC/s'], rows)}\n\nThe best of each shape: {shapes}; a layer with each at its"
        f" best {roofline['int8_peak']:,.0f}."
    )


def _services(results: Mapping[str, Any]) -> str:
    services = results.get("service")
    if not services:
        return ""
    parts = ["## The service", _table(*_service_table(services))]
    parts += ["![throughput and latency by callers, cost by length](speed-service.svg)"]
    rows = [
        [each["bundle"], f"{row['callers']}", f"{row['per_s']:.1f}", _cell(row["latency_ms"], -1)]
        for each in services
        for row in each["callers"]
    ]
    parts.append(_table(["Classify, 40 tokens", "callers", "answers/s", "latency ms"], rows))
    rows = [
        [
            each["bundle"],
            f"{row['tokens']:,}",
            f"{row['passes']}",
            _cell(row["ms"], -1),
            f"{row['ms']['median'] / row['tokens']:.2f}",
        ]
        for each in services
        for row in each["lengths"]
    ]
    parts.append(_table(["by length", "tokens", "windows", "ms", "ms a token"], rows))
    parts.append("A text that is still being written costs the new tokens only: [stream_cost.md](stream_cost.md).")
    return "\n\n".join(parts)


def _service_table(services: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    def row(label: str, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return [label, *(cell(each) for each in services)]

    return ["", *(each["bundle"] for each in services)], [
        row("seconds from the start of the process to SERVING", lambda each: f"{each['serving_s']['median']:.2f}"),
        row("MiB when serving: anonymous / file-backed", lambda each: _both(each["loaded"])),
        row("MiB after the requests: anonymous / file-backed", lambda each: _both(each["steady"])),
        row("MiB at most: anonymous / all", _most),
        row("ms of a Classify of 40 tokens over gRPC", lambda each: _cell(each["round_trip_ms"], -1)),
        row("ms of it outside the graph", lambda each: f"{each['overhead_ms']:.1f}"),
    ]


def _most(service: Mapping[str, Any]) -> str:
    return f"{service['most_anonymous']:,.0f} / {service['most_resident']:,.0f}"


def _both(memory: Mapping[str, float]) -> str:
    return f"{memory['anonymous']:,.0f} / {memory['file_backed']:,.0f}"


def _floors(results: Mapping[str, Any]) -> str:
    rows = [
        [
            each["title"],
            f"{each['mib']:,}",
            f"{each['seconds']:.1f}",
            f"{each['target_mib']:,}",
            "" if each["at_target_seconds"] is None else f"{each['at_target_seconds']:.1f}",
            each["method"],
        ]
        for each in results.get("floors", [])
    ]
    if not rows:
        return ""
    head = ["server, client and workload", "smallest limit, MiB", "s", "aimed at, MiB", "s", "limit by"]
    return "## Container floors\n\n" + _table(head, rows)


def _exports(results: Mapping[str, Any]) -> str:
    rows = [
        [each["quantization"], f"{each['seconds']:.0f}", f"{each['peak_mib']:,}"] for each in results.get("export", [])
    ]
    return "## Export of the 1B, without the parity check\n\n" + _table(["", "s", "MiB at most"], rows) if rows else ""


def _how() -> str:
    return """## How to read it

- Classify: a conversation of so many tokens between the prompt's fixed prefix and its closing; in brackets is
  what has to be computed. Warm: the prefix's keys and values are kept, by each engine's own means. Guardlet starts
  from text and gives all category scores; peers start from token ids and stop at the logits that decide between safe
  and unsafe.
  Generated: peers write "\\n\\nsafe" and the end of the turn, as a guard behind a completions API does.
- Decode: 32 steps of each stream behind a prompt of 128 tokens, which is not timed.
- Weights of the 1B shape are random, which changes no time. How peers are set up: `benchmarks/speed/peers/`."""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _at(results: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = results
    for name in path:
        found = found.get(name, {})
    return found
