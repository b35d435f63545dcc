"""What has to complete under a memory limit: a real server starts, answers over gRPC and drains. Prints its seconds.

The client runs in the same group, so the limit is a little harder than a container's that holds the server alone.
"""

from __future__ import annotations

import argparse
import json
import time

from guard.client import GenerationOptions, GuardClient
from tools.server_process import ServerProcess

_WORDS = "The council met again on Tuesday to talk about the bridge, the school roof and the price of water. "
_KV_MIB = "64"


def main() -> None:
    """Raises what fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", required=True)
    parser.add_argument("--instruct")
    args = parser.parse_args()
    flags = ["--guard", args.guard] + (["--instruct", args.instruct] if args.instruct else [])
    began = time.monotonic()
    with ServerProcess(flags, {"GUARD_KV_CACHE_MIB": _KV_MIB}) as server, GuardClient(server.address) as client:
        for sentences in (1, 2, 4):
            client.classify(_WORDS * sentences)
        if args.instruct:
            client.generate("Tell me a story.", GenerationOptions(max_tokens=16, temperature=0.0))
    if server.exit_status != 0:
        raise SystemExit(f"the server left with {server.exit_status}")
    print(json.dumps({"seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
