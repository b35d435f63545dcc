"""Policies between domain and wire, and what the server says about the one that it applied; part of ``convert``."""

from __future__ import annotations

from collections.abc import Mapping

from guard.cascade import Screening
from guard.client.known import known
from guard.client.results import PolicyInfo
from guard.errors import InvalidInputError
from guard.policy import CustomCategory, Policy, PolicyAction, PolicyChanges
from guard.v1 import moderation_pb2
from guard.verdict import Action, DecidedBy

#: A whole policy, or single fields over those of the policy that the request names.
PolicyFields = Policy | PolicyChanges

_ACTIONS: Mapping[int, Action] = {
    moderation_pb2.ACTION_ALLOW: Action.ALLOW,
    moderation_pb2.ACTION_BLOCK: Action.BLOCK,
    moderation_pb2.ACTION_REPORT: Action.REPORT,
}
_DECIDED_BY: Mapping[int, DecidedBy] = {
    moderation_pb2.DECIDED_BY_MODEL: DecidedBy.MODEL,
    moderation_pb2.DECIDED_BY_DENY_LIST: DecidedBy.DENY_LIST,
    moderation_pb2.DECIDED_BY_ALLOW_LIST: DecidedBy.ALLOW_LIST,
    moderation_pb2.DECIDED_BY_CACHE: DecidedBy.CACHE,
}
_SCREENINGS: Mapping[int, Screening] = {
    moderation_pb2.SCREENING_UNSPECIFIED: Screening.NOT_ASKED,
    moderation_pb2.SCREENING_DECIDED: Screening.DECIDED,
    moderation_pb2.SCREENING_PASSED_ON: Screening.PASSED_ON,
    moderation_pb2.SCREENING_FAILED: Screening.FAILED,
}
_POLICY_ACTIONS: Mapping[int, PolicyAction] = {
    moderation_pb2.POLICY_ACTION_BLOCK: PolicyAction.BLOCK,
    moderation_pb2.POLICY_ACTION_SHADOW: PolicyAction.SHADOW,
}
_POLICY_ACTION_NUMBERS = {
    PolicyAction.BLOCK: moderation_pb2.POLICY_ACTION_BLOCK,
    PolicyAction.SHADOW: moderation_pb2.POLICY_ACTION_SHADOW,
}


def policy_message(policy: PolicyFields) -> moderation_pb2.Policy:
    """Raises InvalidInputError for values that no policy has, and for lists, which only the server's policies have."""
    whole = policy.apply(Policy()) if isinstance(policy, PolicyChanges) else policy
    if whole.deny or whole.allow:
        raise InvalidInputError("policy", "deny and allow lists are the server's: name a policy that has them")
    return moderation_pb2.Policy(
        threshold=policy.threshold,
        category_thresholds=whole.category_thresholds,
        excluded_categories=sorted(whole.excluded_categories),
        custom_categories=[
            moderation_pb2.CustomCategory(code=custom.code, name=custom.name, description=custom.description)
            for custom in whole.custom_categories
        ],
        action=None if policy.action is None else _POLICY_ACTION_NUMBERS[policy.action],
    )


def read_policy(named: moderation_pb2.NamedPolicy) -> PolicyInfo:
    """Raises NoAnswerError for an action that this version does not know."""
    policy = named.policy
    return PolicyInfo(
        name=named.name,
        digest=named.digest,
        threshold=policy.threshold,
        category_thresholds=dict(policy.category_thresholds),
        excluded_categories=tuple(policy.excluded_categories),
        custom_categories=tuple(
            CustomCategory(custom.code, custom.name, custom.description) for custom in policy.custom_categories
        ),
        action=known(_POLICY_ACTIONS, policy.action, "policy.action"),
        deny_entries=named.deny_entries,
        allow_entries=named.allow_entries,
        is_default=named.is_default,
    )


def read_action(value: int) -> Action:
    """Raises NoAnswerError for ACTION_UNSPECIFIED: the server did not say what to do."""
    return known(_ACTIONS, value, "action")


def read_decided_by(value: int) -> DecidedBy | None:
    """None for a way that is newer than this client: the verdict holds all the same."""
    return _DECIDED_BY.get(value)


def read_screening(value: int) -> Screening | None:
    """None for an outcome that is newer than this client."""
    return _SCREENINGS.get(value)
