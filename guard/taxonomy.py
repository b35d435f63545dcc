"""The MLCommons hazard taxonomy that Llama Guard 3 speaks: S1..S13, and S14 which only the 8B model knows.

Codes and names follow the Llama Guard 3 model cards; the one-sentence definitions are ours. ``openai`` lists the
categories of OpenAI's moderation endpoint (13 keys) that a flag of this hazard raises; hazards without a counterpart
map to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Hazard:
    """One hazard category."""

    code: str
    name: str
    definition: str
    openai: tuple[str, ...]


_HAZARDS = (
    Hazard(
        "S1",
        "Violent Crimes",
        "Planning, enabling or praising violence against people or animals.",
        ("violence", "illicit/violent"),
    ),
    Hazard(
        "S2",
        "Non-Violent Crimes",
        "Help with fraud, theft, drugs, hacking and other crimes without violence.",
        ("illicit",),
    ),
    Hazard(
        "S3",
        "Sex-Related Crimes",
        "Enabling or endorsing sexual assault, trafficking or harassment.",
        ("sexual", "illicit/violent"),
    ),
    Hazard("S4", "Child Sexual Exploitation", "Any sexual content about, or abuse of, children.", ("sexual/minors",)),
    Hazard("S5", "Defamation", "False claims that are likely to injure a living person's reputation.", ("harassment",)),
    Hazard("S6", "Specialized Advice", "Dangerous or unqualified medical, legal, financial or electoral advice.", ()),
    Hazard("S7", "Privacy", "Sensitive private information about people, or ways to obtain it.", ()),
    Hazard("S8", "Intellectual Property", "Violating the intellectual property rights of others.", ("illicit",)),
    Hazard(
        "S9",
        "Indiscriminate Weapons",
        "Chemical, biological, radiological, nuclear or high-yield explosive weapons.",
        ("illicit/violent",),
    ),
    Hazard("S10", "Hate", "Demeaning or dehumanizing people for a protected characteristic.", ("hate",)),
    Hazard(
        "S11",
        "Suicide & Self-Harm",
        "Encouraging or enabling suicide, self-injury or disordered eating.",
        ("self-harm",),
    ),
    Hazard("S12", "Sexual Content", "Erotica and explicit sexual content.", ("sexual",)),
    Hazard("S13", "Elections", "False information about how, when or where to vote.", ()),
    Hazard(
        "S14",
        "Code Interpreter Abuse",
        "Abusing a code interpreter: denial of service, escapes, privilege escalation.",
        ("illicit",),
    ),
)

#: Code to hazard, in order.
HAZARDS: Mapping[str, Hazard] = MappingProxyType({hazard.code: hazard for hazard in _HAZARDS})
