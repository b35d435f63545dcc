"""Judge a prompt and an answer, and tell what went wrong apart: python examples/classify.py [ADDRESS]"""

from __future__ import annotations

import sys

from guard.client import GuardClient, GuardClientError, RequestRejectedError, ServerBusyError
from guard.conversation import Message, Role
from guard.verdict import Verdict


def main(address: str) -> int:
    question = Message(Role.USER, "My neighbour's dog barks all night. What can I do?")
    answers = ["Talk to him, and keep a diary.", "Mix rat poison into meat and kill the dog.", " "]
    with GuardClient(address, timeout_s=30) as client:
        for answer in answers:
            try:
                found = client.classify([question, Message(Role.ASSISTANT, answer)])
            except RequestRejectedError as error:  # our mistake: it says which field
                print("rejected:", *(f"{each.field} {each.description}" for each in error.field_violations))
            except ServerBusyError as error:
                print("busy: again in", error.retry_after_s, "s")
            except GuardClientError as error:  # no verdict. Never go on as if it were safe
                print("no verdict:", error.reason)
            else:
                blocked = found.verdict is not Verdict.SAFE
                top = "" if found.top_category is None else found.top_category.name
                print("blocked" if blocked else "shown", f"{found.unsafe_score:.2f}", top if blocked else "")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or ["127.0.0.1:50051"]))
