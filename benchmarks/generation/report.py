"""The measured figures as Markdown and as one SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.chart import Line, Panel, chart

#: What there is to measure, in the order of the document.
PARTS = ("streams", "joining", "lookup", "memory", "agreement")
_COLORS = ("#1f77b4", "#c0392b", "#2e8b57")
_NAMES = {"none": "float32"}

Results = Mapping[str, Any]


def document(results: Results) -> str:
    """All parts that were measured, how to read them and how to repeat them."""
    writers: tuple[Callable[[Any], str], ...] = (_streams, _joining, _lookup, _memory, _agreement)
    measured = [(part, write) for part, write in zip(PARTS, writers, strict=True) if results.get(part)]
    sections = "\n\n".join(write(results[part]) for part, write in measured)
    return f"""# Text generation, measured

SmolLM2-135M-Instruct, int8 unless a table says otherwise, on {results["machine"]}. The machine did other work
meanwhile, so the seconds say little; ratios are of runs that took turns, and steadiest by the process's CPU time.

![streams, gaps, prompt lookup, memory](generation.svg)

{sections}

Repeat (about twelve minutes): `make bench-generation`
"""


def _streams(rows: Sequence[Results]) -> str:
    lines = [
        f"| {row['streams']} | {row['same']} of {row['texts']} | {row['tokens_per_s']:.0f}"
        f" | {row['speed']['median']:.2f} ({row['speed']['least']:.2f} to {row['speed']['most']:.2f})"
        f" | {row['cpu_speed']['median']:.2f} ({row['cpu_speed']['least']:.2f} to {row['cpu_speed']['most']:.2f}) |"
        for row in rows
    ]
    return "\n".join(
        [
            "## Streams together",
            "",
            "Half the texts are greedy, half sampled with a seed; none uses prompt lookup. Speed is all tokens a",
            "second as a ratio to one stream's in the same round.",
            "",
            "| streams | text as alone | tokens/s | speed, median (least to most) | by CPU time |",
            "|---:|---:|---:|---:|---:|",
            *lines,
        ]
    )


def _joining(rows: Sequence[Results]) -> str:
    lines = [
        f"| {row['policy']} | {moment} | {gaps['count']} | {gaps['median']:.0f} | {gaps['p95']:.0f}"
        f" | {gaps['most']:.0f} |"
        for row in rows
        for moment, gaps in (("before", row["before"]), ("meanwhile", row["meanwhile"]), ("after", row["after"]))
    ]
    waits = "; ".join(
        f"{row['first_token_s']:.1f} s with {row['policy']} ({row['alone_s']:.1f} s alone)" for row in rows
    )
    return "\n".join(
        [
            f"## A prompt of {rows[0]['prompt_tokens']:,} tokens joins three streams",
            "",
            "Milliseconds between two tokens of a stream:",
            "",
            "| prefill | when | gaps | p50 | p95 | longest |",
            "|---|---|---:|---:|---:|---:|",
            *lines,
            "",
            f"The long prompt's first token came after {waits}.",
        ]
    )


def _lookup(rows: Sequence[Results]) -> str:
    lines = [
        f"| {_name(row)} | {row['same']} of {len(row['pairs'])}"
        f" | {row['total_speed']:.2f} | {row['total_cpu_speed']:.2f} | {row['cpu_speed']['median']:.2f}"
        f" | {row['cpu_speed']['p10']:.2f} to {row['cpu_speed']['p90']:.2f}"
        f" | {row['cpu_speed']['least']:.2f} | {_accepted(row['pairs'])} |"
        for row in rows
    ]
    kinds = list(dict.fromkeys(pair["kind"] for pair in rows[0]["pairs"]))
    by_kind = [
        f"| {kind} | {len(_of_kind(rows[0], kind))} | "
        + " | ".join(f"{_middle([pair['cpu_speed'] for pair in _of_kind(row, kind)]):.2f}" for row in rows)
        + " |"
        for kind in kinds
    ]
    return "\n".join(
        [
            "## Prompt lookup",
            "",
            "Each task was written with prompt lookup and without, greedily. Speed: tokens a second with lookup as a",
            "ratio to without, of all tasks together by the clock and by CPU time, then by CPU time over the tasks.",
            "",
            "| model | same text | by the clock | by CPU time | median | p10 to p90 | slowest | drafts accepted |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *lines,
            "",
            *_parting(rows),
            "| kind of task | tasks | " + " | ".join(f"{_name(row)}, median" for row in rows) + " |",
            "|---|---:|" + "---:|" * len(rows),
            *by_kind,
        ]
    )


def _parting(rows: Sequence[Results]) -> list[str]:
    """Why texts differ, if any do."""
    margins = {_name(row): [pair["margin"] for pair in row["pairs"] if pair["margin"] is not None] for row in rows}
    medians = [f"{_middle(values):.2f} ({name})" for name, values in margins.items() if values]
    if not medians:
        return []
    return [
        "Why texts differ: ONNX Runtime's attention adds up a step of one token in another order than a step of",
        "several, which moves its result by about 1e-6. With float32 that is all. A quantized model rounds activations",
        "to 8 bits and makes whole steps of it, in the KV cache too; texts part where two tokens are about as likely.",
        f"There the best token's logit is above the second best's by, in the median, {', '.join(medians)}.",
        "",
    ]


def _memory(row: Results) -> str:
    steady = [mib for _, mib in row["samples"]][len(row["samples"]) // 5 :]
    cells = (
        f"{row['loaded_mib']:.0f}",
        f"{steady[0]:.0f}",
        f"{steady[-1]:.0f}",
        f"{row['growth_mib']:+.0f}",
        f"{min(steady):.0f} to {max(steady):.0f}",
    )
    return f"""## Memory

{row["requests"]:,} requests, at most twelve at once: short and long prompts, greedy and sampled, one to three choices,
streams; {row["cancelled"]} were cancelled. Resident memory of the process in MiB:

| loaded | after 20% of the requests | at the end | growth | least and most between |
|---:|---:|---:|---:|---:|
| {" | ".join(cells)} |

The first requests fill the cache of prompt prefixes (64 MiB). Growth is, of the requests after
them, the median of the second half less that of the first.

One request of {row["large_prompt_tokens"]:,} tokens, with {row["large_kv_mib"]:.0f} MiB of KV cache:
{row["before_large_mib"]:.0f} MiB before, {row["during_large_mib"]:.0f} at most meanwhile, {row["after_large_mib"]:.0f}
as soon as it was answered. KV cache reserved at once: at most {row["kv_peak_mib"]:.0f} MiB of
{row["kv_budget_mib"]:.0f}; at the end {row["kv_left_mib"]:.0f}."""


def _agreement(rows: Sequence[Results]) -> str:
    lines = [
        f"| {_name(row)} | {row['same']} of {row['prompts']} | {row['common_tokens'] / row['prompts']:.1f} of"
        f" {row['tokens'] / row['prompts']:.1f} |"
        for row in rows
    ]
    return "\n".join(
        [
            "## Agreement with float32",
            "",
            "Greedy texts of the same prompts. Once a token differs, all after it may: the common beginning says more.",
            "",
            "| model | same text | tokens until they part, mean |",
            "|---|---:|---:|",
            *lines,
        ]
    )


def figure(results: Results) -> str:
    """SVG: one panel for each part that has one and was measured."""
    panels = []
    if rows := results.get("streams"):
        points = [(row["streams"], row["cpu_speed"]["median"]) for row in rows]
        panels.append(
            Panel(
                "all tokens per CPU second, times one stream's",
                "streams",
                [Line("median of rounds", _COLORS[0], points)],
            )
        )
    if rows := results.get("joining"):
        lines = [Line(row["policy"], color, row["worst"]) for row, color in zip(rows, _COLORS, strict=False)]
        panels.append(Panel("longest gap in each half second, ms", "seconds", lines))
    if rows := results.get("lookup"):
        panels.append(Panel("speed with prompt lookup, times without", "tasks, by speed", _lookup_lines(rows)))
    if row := results.get("memory"):
        panels.append(Panel("resident MiB", "requests done", [Line("process", _COLORS[0], row["samples"])]))
    return chart("Text generation", panels)


def _lookup_lines(rows: Sequence[Results]) -> list[Line]:
    return [
        Line(
            _name(row),
            color,
            [(place, speed) for place, speed in enumerate(sorted(p["cpu_speed"] for p in row["pairs"]), 1)],
        )
        for row, color in zip(rows, _COLORS, strict=False)
    ]


def _name(row: Results) -> str:
    quantization: str = row["quantization"]
    return _NAMES.get(quantization, quantization)


def _of_kind(row: Results, kind: str) -> list[Any]:
    return [pair for pair in row["pairs"] if pair["kind"] == kind]


def _accepted(pairs: Sequence[Results]) -> str:
    drafted = sum(pair["drafted"] for pair in pairs)
    accepted = sum(pair["accepted"] for pair in pairs)
    return f"{accepted:,} of {drafted:,}"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
