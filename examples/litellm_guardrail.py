"""A guardrail for LiteLLM's proxy that asks Guardlet, and blocks whatever was not found safe. In its config.yaml:

    guardrails:
      - guardrail_name: guardlet
        litellm_params:
          guardrail: litellm_guardrail.GuardletGuardrail   # this file beside the config.yaml
          mode: [pre_call, post_call]                      # or during_call for the first: while the LLM works
          default_on: true
          api_base: 127.0.0.1:50051                        # of guard serve
          api_key: os.environ/GUARD_API_KEY                # only with callers

Chat completions alone: what has no messages is refused. The whole history is judged, since clients send it and can
forge it, and so are instructions and results of tools; verdicts of earlier turns come from Guardlet's cache. Streams
are passed on chunk by chunk, each once its text was found safe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.types.guardrails import GuardrailEventHooks

from guard.client import AsyncGuardClient, Classification, GuardClientError, RequestRejectedError, UnsafeTextError
from guard.conversation import Message, Role
from guard.errors import GuardError
from guard.verdict import Action

_ROLES = {"user": Role.USER, "assistant": Role.ASSISTANT}
_APART = ("system", "developer", "tool", "function")


class GuardletGuardrail(CustomGuardrail):  # type: ignore[misc]  # litellm is in an environment of its own
    """``api_base``: HOST:PORT of the server. ``policy_name``: one of its policies."""

    def __init__(self, api_base: str, api_key: str | None = None, policy_name: str = "", **options: Any) -> None:
        hooks = [GuardrailEventHooks.pre_call, GuardrailEventHooks.during_call, GuardrailEventHooks.post_call]
        super().__init__(supported_event_hooks=hooks, **options)
        self._address, self._api_key, self._policy_name = api_base, api_key, policy_name
        self._opened: AsyncGuardClient | None = None

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Before the LLM is asked."""
        await self._check([*questions(data)])
        return data

    async def async_moderation_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, call_type: str
    ) -> dict[str, Any]:
        """While the LLM is asked; its answer waits for this."""
        await self._check([*questions(data)])
        return data

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """Before a whole answer leaves."""
        asked = turns(data)
        answers = [text_of(choice.message) for choice in choices_of(response)]
        await self._check([[*asked, Message(Role.ASSISTANT, answer)] for answer in answers if answer.strip()])
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: AsyncIterator[Any], request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """Chunks as they came, each once all of its text was found safe."""
        waiting: deque[tuple[int, Any]] = deque()  # with the length of all text up to its end
        written = released = 0

        async def texts() -> AsyncIterator[str]:
            nonlocal written
            async for chunk in response:
                text = "".join(text_of(choice.delta) for choice in one_choice(chunk))
                written += len(text)
                waiting.append((written, chunk))
                if text:
                    yield text

        deltas = texts()
        first = await anext(deltas, None)
        if first is not None:
            try:
                asked = turns(request_data)
                async for text in self._client.moderated(asked, chained(first, deltas), policy_name=self._policy_name):
                    released += len(text)
                    while waiting and waiting[0][0] <= released:
                        yield waiting.popleft()[1]
            except UnsafeTextError as error:
                raise self._blocked(error.judgement) from None
            except GuardError as error:
                raise self._failed(error) from None
        while waiting:  # what has no text; all that has some was released
            yield waiting.popleft()[1]

    @property
    def _client(self) -> AsyncGuardClient:
        """Made by the first call, as it belongs to the event loop of the calls."""
        if self._opened is None:
            self._opened = AsyncGuardClient(self._address, api_key=self._api_key, timeout_s=30)
        return self._opened

    async def _check(self, conversations: Sequence[Sequence[Message]]) -> None:
        """Raise GuardrailRaisedException unless the last message of each may be let through."""
        if not conversations:
            return
        try:
            found = await self._client.batch_classify(conversations, policy_name=self._policy_name)
        except GuardError as error:
            raise self._failed(error) from None
        for outcome in found:
            if isinstance(outcome, GuardClientError):
                raise self._failed(outcome)
            if outcome.action not in (Action.ALLOW, Action.REPORT):  # the latter is a policy in shadow mode
                raise self._blocked(outcome)

    def _blocked(self, found: Classification) -> GuardrailRaisedException:
        top = "" if found.top_category is None else f": {found.top_category.code} {found.top_category.name}"
        return GuardrailRaisedException(self.guardrail_name, f"the text is unsafe{top}", blocked_content=True)

    def _failed(self, error: GuardError) -> GuardrailRaisedException:
        """Nobody has judged the text, so it is not let through. Only the caller's own mistakes are told in full."""
        if isinstance(error, RequestRejectedError):
            return GuardrailRaisedException(self.guardrail_name, f"no verdict: {error}")
        return GuardrailRaisedException(self.guardrail_name, f"no verdict: {error.reason}", status_code=503)


def questions(data: Mapping[str, Any]) -> Iterator[list[Message]]:
    """Everything in a request that is judged: each turn after those before it, and the rest apart."""
    said = turns(data)
    for end in range(len(said), 0, -1):
        yield said[:end]
    for message in messages_of(data):
        if message.get("role") in _APART and (text := content_text(message)).strip():
            yield [Message(Role.USER, text)]


def turns(data: Mapping[str, Any]) -> list[Message]:
    """The conversation as the guard reads it: users and assistants in turn."""
    spoken = [
        (_ROLES[message["role"]], content_text(message)) for message in messages_of(data) if message["role"] in _ROLES
    ]
    kept = [(role, text) for role, text in spoken if text.strip()]
    return [
        Message(role, "\n\n".join(text for _, text in said)) for role, said in groupby(kept, key=lambda turn: turn[0])
    ]


def messages_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a request. Refuses what is none that can be judged."""
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise GuardrailRaisedException("guardlet", "only chat completions can be judged: there are no messages")
    if not all(isinstance(message, dict) and message.get("role") in (*_ROLES, *_APART) for message in messages):
        raise GuardrailRaisedException("guardlet", "messages: a role that cannot be judged")
    return messages


def content_text(message: Mapping[str, Any]) -> str:
    """The text of a message: its own, that of its parts, and the arguments of its calls. Refuses all but text."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise GuardrailRaisedException("guardlet", "messages: a part that is not text cannot be judged")
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return "\n".join([str(part["text"]) for part in parts] + [str(call.get("arguments") or "") for call in calls])


def text_of(message: Any) -> str:
    """Everything that an answer, or a piece of one, says: text, reasoning, and the arguments of calls."""
    calls = [call.function.arguments for call in getattr(message, "tool_calls", None) or ()]
    said = [getattr(message, name, None) for name in ("reasoning_content", "content", "refusal")]
    return "".join(text for text in (*said, *calls) if text)


def choices_of(response: Any) -> list[Any]:
    """The choices of an answer. Refuses what has none, such as images and audio."""
    choices = getattr(response, "choices", None)
    if not choices:
        raise GuardrailRaisedException("guardlet", "only answers of chat completions can be judged")
    return list(choices)


def one_choice(chunk: Any) -> list[Any]:
    """The choice of a chunk; the last chunk may have none. Refuses a stream of several, whose texts are interleaved."""
    choices = list(getattr(chunk, "choices", None) or ())
    if any(choice.index for choice in choices):
        raise GuardrailRaisedException("guardlet", "a stream of several choices cannot be judged: ask for n = 1")
    return choices


async def chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """``first``, then ``rest``."""
    yield first
    async for text in rest:
        yield text
