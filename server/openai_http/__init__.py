"""The HTTP facade: what OpenAI's clients speak, and a page to look at, in the same process as gRPC.

A request becomes the message of guard.v1 that asks the same, and runs through the same interceptors and servicers as a
gRPC call. So who may call, quotas, admission, deadlines, telemetry and audit are those of gRPC, not copies of them.

    settings     where to listen
    serving      the listening socket, TLS, start and stop (uvicorn)
    tls          the server's certificates, read again when they change
    routes       paths to what answers them (starlette)
    exchange     one request: read it, run it, stop it when its client leaves
    fields       JSON that others wrote, read with the path of what is wrong
    moderations  /v1/moderations
    chat         /v1/chat/completions: the question
    completions  /v1/chat/completions: the answer, whole or streamed
    catalog      /v1/models
    errors       statuses to HTTP, the only place that chooses one
    page         the page
"""
