# The server alone: no torch, no exporter, no compiler. Models are mounted at /models, never baked in.
#   docker build -t guardlet .
#   docker run --read-only --memory 1g -p 127.0.0.1:50051:50051 -v "$PWD/models:/models:ro" guardlet
# For a build that gives the same image again, pass the base by digest: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS builder
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY guard guard
COPY export export
COPY server server
# The environment gets no pip of its own: nothing can be installed into the running image.
RUN python -m venv --without-pip /opt/guardlet \
 && python -m pip --python /opt/guardlet/bin/python install --no-cache-dir -c constraints.txt '.[server]'

FROM ${BASE}
ENV PATH=/opt/guardlet/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GUARD_ADDRESS=0.0.0.0:50051 \
    GUARD_ALLOW_INSECURE=true
# Inside a container the published port or the pod's network is the boundary; hence the two variables above.
COPY --from=builder /opt/guardlet /opt/guardlet
# Numeric, so that Kubernetes' runAsNonRoot can check it.
USER 65532:65532
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["guard", "health"]
ENTRYPOINT ["guard"]
CMD ["serve", "--guard", "/models/embedded-guard", "--instruct", "/models/embedded-instruct"]
