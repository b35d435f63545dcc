"""Policies between the wire format and the domain; part of the border that ``server.convert`` is."""

from __future__ import annotations

from typing import cast

from guard.errors import InvalidInputError
from guard.policies import NamedPolicy, PolicyBook
from guard.policy import CustomCategory, PolicyAction, PolicyChanges, is_code
from guard.v1 import generation_pb2, moderation_pb2

#: Everything that names a policy and may change it.
PolicyRequest = moderation_pb2.ClassifyRequest | moderation_pb2.StreamClassifyStart | generation_pb2.ModerationOptions

_ACTIONS = {
    moderation_pb2.POLICY_ACTION_BLOCK: PolicyAction.BLOCK,
    moderation_pb2.POLICY_ACTION_SHADOW: PolicyAction.SHADOW,
}
_ACTION_NUMBERS = {action: number for number, action in _ACTIONS.items()}


def applied_policy(request: PolicyRequest, book: PolicyBook, caller: str | None) -> NamedPolicy:
    """The policy that the request names, or its caller's default, with the request's own changes.

    Raises InvalidInputError naming the field.
    """
    named = book.named(request.policy_name, caller)
    return NamedPolicy(named.name, _changes(request.policy).apply(named.policy))


def named_policy(named: NamedPolicy, is_default: bool) -> moderation_pb2.NamedPolicy:
    """What ListPolicies shows: everything but the phrases of the lists."""
    policy = named.policy
    return moderation_pb2.NamedPolicy(
        name=named.name,
        digest=policy.digest,
        policy=moderation_pb2.Policy(
            threshold=policy.threshold,
            category_thresholds=policy.category_thresholds,
            excluded_categories=sorted(policy.excluded_categories),
            custom_categories=[
                moderation_pb2.CustomCategory(code=custom.code, name=custom.name, description=custom.description)
                for custom in policy.custom_categories
            ],
            action=_ACTION_NUMBERS[policy.action],
        ),
        deny_entries=len(policy.deny),
        allow_entries=len(policy.allow),
        is_default=is_default,
    )


def _changes(policy: moderation_pb2.Policy) -> PolicyChanges:
    for name in ("category_thresholds", "excluded_categories"):
        if not all(map(is_code, getattr(policy, name))):
            # Codes become part of later error messages, so only what can be a code gets as far as the domain.
            raise InvalidInputError(f"policy.{name}", "expected category codes, S1 to S99")
    custom = tuple(_custom_category(*item) for item in enumerate(policy.custom_categories))
    return PolicyChanges(
        threshold=policy.threshold if policy.HasField("threshold") else None,
        category_thresholds=dict(policy.category_thresholds) or None,
        excluded_categories=frozenset(policy.excluded_categories) or None,
        custom_categories=custom or None,
        action=_action(policy.action),
    )


def _action(number: int) -> PolicyAction | None:
    if number == moderation_pb2.POLICY_ACTION_UNSPECIFIED:
        return None
    action = _ACTIONS.get(cast(moderation_pb2.PolicyAction, number))
    if action is None:
        raise InvalidInputError("policy.action", f"unknown number {number}")
    return action


def _custom_category(index: int, category: moderation_pb2.CustomCategory) -> CustomCategory:
    try:
        return CustomCategory(category.code, category.name, category.description)
    except InvalidInputError as error:
        name = error.field.rpartition(".")[2]
        raise InvalidInputError(f"policy.custom_categories[{index}].{name}", error.problem) from None
