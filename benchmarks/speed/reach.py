"""What was aimed at, and what a run measured: ratios within the run, or absolute limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_OURS = "Guardlet"


@dataclass(frozen=True)
class Goal:
    """``reached`` is None where the run did not measure it."""

    name: str
    wanted: str
    measured: str
    reached: bool | None


def medians(part: Mapping[str, Any], workload: str) -> dict[str, float]:
    """Engine to its median in ms; empty when the workload was not measured."""
    row = part.get("workloads", {}).get(workload, {"ms": {}})["ms"]
    return {engine: spread["median"] for engine, spread in row.items()}


def ours_and_best_peer(part: Mapping[str, Any], workload: str, ours: str = "") -> tuple[float, str, float] | None:
    """Our median (of variant ``ours``, else our fastest), the fastest peer and its median; None when one is missing."""
    found = medians(part, workload)
    mine = [ms for name, ms in found.items() if name == ours or (not ours and name.startswith(_OURS))]
    peers = {name: ms for name, ms in found.items() if not name.startswith(_OURS)}
    if not mine or not peers:
        return None
    best = min(peers, key=lambda name: peers[name])
    return min(mine), best, peers[best]


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """All of them, in the order of the issue that set them."""
    guard, instruct = results.get("guard", {}), results.get("instruct", {})
    small = results.get("smollm2", {}).get("guard", {})
    warm = "classify 40, warm"
    found = [
        _ratio("Classify 40 tokens, warm: beside the fastest peer", guard, warm, 3.0, "Guardlet int8"),
        _share(
            "Classify 40 tokens, warm: of the 8-bit peak",
            _ideal_ms(results, guard, warm),
            medians(guard, warm).get("Guardlet int8"),
            0.85,
        ),
        _most("Embedded guard, 40 tokens, warm: ms", medians(small, warm).get("Guardlet int8"), 60),
        _ratio("Prefill 128: beside the best peer", instruct, "prefill 128", 1.8),
        _ratio("Prefill 512: beside the best peer", instruct, "prefill 512", 1.8),
        _ratio(
            "Decode int4-small, one stream: beside the best peer",
            instruct,
            "decode, 1 at once",
            1.2,
            "Guardlet int4-small",
        ),
        _share("Decode int4-small, one stream: of the memory bandwidth", *_bandwidth(results, instruct), 0.8),
        _eight_streams(instruct),
    ]
    for service in results.get("service", []):
        if service["bundle"] == "1B int8":
            found += [
                _most("1B guard int8: seconds to SERVING", service["serving_s"]["median"], 1),
                _most("1B guard int8: anonymous MiB, steady", service["steady"]["anonymous"], 150),
                _most("Classify beside the model: ms", service["overhead_ms"], 3),
            ]
    for floor in results.get("floors", []):
        kind = "" if floor["real"] else " (no real limit here)"
        found.append(_most(f"Container floor, {floor['title']}: MiB{kind}", floor["mib"], floor["target_mib"]))
    for export in results.get("export", []):
        found.append(_most(f"Export of the 1B, {export['quantization']}: seconds", export["seconds"], 30))
        found.append(_most(f"Export of the 1B, {export['quantization']}: MiB", export["peak_mib"], 614))
    return found


def _ratio(name: str, part: Mapping[str, Any], workload: str, wanted: float, ours: str = "") -> Goal:
    both = ours_and_best_peer(part, workload, ours)
    if both is None:
        return Goal(name, f"{wanted:g}x", "not measured", None)
    mine, peer, other = both
    return Goal(name, f"{wanted:g}x", f"{other / mine:.2f}x ({peer})", other / mine >= wanted)


def _share(name: str, ideal_ms: float | None, ms: float | None, wanted: float) -> Goal:
    if ideal_ms is None or ms is None:
        return Goal(name, f"{wanted:.0%}", "not measured", None)
    return Goal(name, f"{wanted:.0%}", f"{ideal_ms / ms:.0%}", ideal_ms / ms >= wanted)


def _most(name: str, value: float | None, limit: float) -> Goal:
    if value is None:
        return Goal(name, f"at most {limit:g}", "not measured", None)
    return Goal(name, f"at most {limit:g}", f"{value:.3g}" if value < 1000 else f"{value:.0f}", value <= limit)


def _ideal_ms(results: Mapping[str, Any], part: Mapping[str, Any], workload: str) -> float | None:
    """The layers' products of a workload, each at its best rate."""
    roofline, row = results.get("roofline"), part.get("workloads", {}).get(workload)
    if not roofline or not row:
        return None
    return float(1000 * row["tokens"] * roofline["macs_per_token"] / roofline["int8_peak"] / 1e9)


def _bandwidth(results: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Milliseconds that reading the weights takes, and those that the steps of int4-small took."""
    roofline, ms = results.get("roofline"), medians(part, "decode, 1 at once").get("Guardlet int4-small")
    if not roofline or ms is None:
        return None, None
    steps = part["workloads"]["decode, 1 at once"]["tokens"]
    return 1000 * steps * roofline["step_bytes"]["int4-small"] / roofline["read_gb_s"] / 1e9, ms


def _eight_streams(part: Mapping[str, Any]) -> Goal:
    name, wanted = "Decode int4-small: tokens/s of 8 streams beside one", 2.5
    one = medians(part, "decode, 1 at once").get("Guardlet int4-small")
    eight = medians(part, "decode, 8 at once").get("Guardlet int4-small")
    if one is None or eight is None:
        return Goal(name, f"{wanted:g}x", "not measured", None)
    return Goal(name, f"{wanted:g}x", f"{8 * one / eight:.2f}x", 8 * one / eight >= wanted)
