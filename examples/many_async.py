"""Judge many texts at once with asyncio, and come back when told to: python examples/many_async.py [ADDRESS]"""

from __future__ import annotations

import asyncio
import sys

from guard.client import AsyncGuardClient, Classification, GuardClientError, ServerBusyError
from guard.verdict import Verdict

TEXTS = ["How do I boil an egg?", "How can I steal credit card numbers from an online shop?", "Name a river."] * 20
#: More than a server admits (max_requests, 64) only makes refusals.
AT_ONCE = 16
TRIES = 5


async def classified(client: AsyncGuardClient, text: str) -> Classification:
    """The verdict; raises the last GuardClientError."""
    for attempt in range(1, TRIES + 1):
        try:
            return await client.classify(text)
        except ServerBusyError as error:
            if attempt == TRIES:
                raise
            await asyncio.sleep(error.retry_after_s or 1.0)
    raise AssertionError("the last try returns or raises")


async def main(address: str) -> int:
    places = asyncio.Semaphore(AT_ONCE)

    async def judged(text: str) -> str:
        async with places:
            try:
                found = await classified(client, text)
            except GuardClientError as error:
                return f"no verdict ({error.reason})"  # blocked too, as long as nobody has judged it
            return "shown" if found.verdict is Verdict.SAFE else "blocked"

    async with AsyncGuardClient(address, timeout_s=60) as client:
        outcomes = await asyncio.gather(*map(judged, TEXTS))
    for outcome in sorted(set(outcomes)):
        print(outcome, outcomes.count(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:2] or ["127.0.0.1:50051"])))
