# The server alone: no torch, no exporter's dependencies, no compiler, no pip and, on the default base, no shell.
#   docker build -t guardlet .
#   docker run --read-only --memory 1g -e GUARD_ALLOW_INSECURE=true -p 127.0.0.1:50051:50051 \
#     -v "$PWD/models:/models:ro" guardlet
# For a build that gives the same image again, pass both bases by digest:
#   --build-arg BASE=docker.io/library/python@sha256:... --build-arg RUNTIME=gcr.io/distroless/python3-debian12@sha256:...
# BASE builds and RUNTIME runs; they need the same Python minor version. RUNTIME may be BASE where a shell is wanted.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG RUNTIME=gcr.io/distroless/python3-debian12:nonroot

FROM ${BASE} AS builder
WORKDIR /build
RUN python3 -m venv /tools
# Every wheel is of a hash in these files, for this platform; nothing is compiled and nothing else is resolved.
COPY deploy/requirements.txt deploy/requirements-build.txt deploy/
RUN /tools/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r deploy/requirements-build.txt \
 && /tools/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: --no-compile \
      --target /opt/guardlet -r deploy/requirements.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY guard guard
COPY export export
COPY server server
# Scripts name this stage's Python and tests of packages are of no use; both go. Compiled files are checked by nobody at
# run time, so they do not depend on when a file was written.
RUN /tools/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-compile --target /opt/guardlet . \
 && rm -rf /opt/guardlet/bin \
 && find /opt/guardlet -type d -name tests -prune -exec rm -rf {} + \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/guardlet

FROM ${RUNTIME}
ENV PYTHONPATH=/opt/guardlet \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GUARD_ADDRESS=0.0.0.0:50051
COPY --from=builder /opt/guardlet /opt/guardlet
# What to bake in: a directory of bundles inside the build context. The default is empty; models are then mounted.
ARG MODELS=deploy/models
COPY ${MODELS} /models
# Numeric, so that Kubernetes' runAsNonRoot can check it.
USER 65532:65532
EXPOSE 50051
# For a server with TLS: the same with --tls-ca FILE.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 CMD ["python3", "-m", "guard.cli", "health"]
ENTRYPOINT ["python3", "-m", "guard.cli"]
CMD ["serve", "--guard", "/models/embedded-guard", "--instruct", "/models/embedded-instruct"]
