"""What a running server tells Prometheus, read as Prometheus would."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from .running import Running


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [
            (sample.name, dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
        self.names = {name for name, _, _ in self.samples}

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of ``name`` with these labels; 0 when there are none."""
        return sum(value for found, having, value in self.samples if found == name and labels.items() <= having.items())

    def labels(self, name: str, label: str) -> set[str]:
        """The values that ``label`` has among the samples of ``name``."""
        return {having[label] for found, having, _ in self.samples if found == name}


def get(address: str | None, path: str) -> str:
    """The body of an answer with status 200."""
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        assert answer.status == 200
        return str(answer.read().decode())


async def scrape(server: Running) -> Scrape:
    """All metrics now."""
    return Scrape(await asyncio.to_thread(get, server.app.telemetry.address, "/metrics"))


async def stats(server: Running) -> dict[str, Any]:
    """``/stats`` now."""
    found: dict[str, Any] = json.loads(await asyncio.to_thread(get, server.app.telemetry.address, "/stats"))
    return found
