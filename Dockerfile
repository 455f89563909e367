# The image of server, site and lead: this package and its dependencies. provisioning/RUNBOOK.md says how to run it.
#
#   docker build -t REGISTRY/fedfms:0.1 .                                                              # for CPUs
#   docker build -t REGISTRY/fedfms:0.1-cuda --build-arg TORCH_INDEX=https://pypi.org/simple .         # for CUDA cards
#
# NVFLARE starts /usr/local/bin/python3 in it with a command of its own: there is no ENTRYPOINT. There is no HEALTHCHECK:
# a site opens no port, and a client or server that fails ends its container.

# Debian with Python in /usr/local. For a build that can be repeated, name it by its digest: BASE=...@sha256:...
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY custom custom
COPY preprocessing preprocessing
COPY provisioning provisioning
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
# torch for CPUs; PyPI has torch for CUDA cards
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=dicom
LABEL org.opencontainers.image.title="fedfms" \
      org.opencontainers.image.description="Federated fine-tuning of the Segment Anything Model, on NVIDIA FLARE" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=wheel /dist/ /opt/fedfms/
COPY constraints.txt /opt/fedfms/
RUN python3 -m pip install --no-cache-dir --no-deps --constraint /opt/fedfms/constraints.txt \
        --index-url "${TORCH_INDEX}" torch \
 && python3 -m pip install --no-cache-dir --constraint /opt/fedfms/constraints.txt \
        "fedfms[${EXTRAS}] @ file:///opt/fedfms/fedfms-${VERSION}-py3-none-any.whl" \
 && python3 -m pip check

# The root file system is read-only and the user any number: what libraries write for themselves goes to /tmp.
ENV HOME=/tmp USER=fedfms MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /workspace
CMD ["fedfms", "--help"]
