# The worker as a container. CPU by default; for CUDA build with
#   --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04
# (the wheels of torch bring CUDA's libraries; the base needs none). An image for CPUs alone is some GB
# smaller with TORCH_INDEX, the address of PyTorch's index of CPU wheels. A build that must repeat names its
# base by digest (--build-arg BASE=debian@sha256:...). Models live in /models.
ARG BASE=debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG TORCH_INDEX=
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# Requirements first: a change of our own code does not fetch torch again.
# With `make hashes`' requirements.txt beside them, no other file than those is installed.
COPY settings.ini constraints.txt requirements.tx[t] ./
RUN set -- --require-hashes --no-deps \
    && if [ ! -e requirements.txt ]; then set -- -c constraints.txt \
        && sed -n -E 's/^(c2pa_)?requirements = //p' settings.ini | tr ' ' '\n' >requirements.txt; fi \
    && pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        "$@" -r requirements.txt
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE NOTICE.md ./
COPY stylegen stylegen
RUN pip install --no-cache-dir --no-deps .

# hadolint ignore=DL3006
FROM ${BASE} AS worker
LABEL org.opencontainers.image.title="stylegen" \
      org.opencontainers.image.licenses="Apache-2.0"
# Fonts: a signature is drawn in the artist's own script, or the job fails. The compiler and Python's
# headers: with STYLEGEN_COMPILE torch writes C++ at the start, and builds it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        python3 python3-dev g++ fonts-noto-core fonts-noto-cjk \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin stylegen \
    && install -d -o stylegen -g stylegen /models
COPY --from=build /opt/venv /opt/venv
# LoRA files are cached below HOME, which with a read-only root is in memory (--tmpfs /tmp): 1 GiB.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/models/huggingface \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    STYLEGEN_CACHE_BYTES=1073741824 \
    STYLEGEN_HEALTH_HOST=0.0.0.0 \
    STYLEGEN_HEALTH_PORT=9100
VOLUME /models
USER 10001:10001
EXPOSE 9100
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"STYLEGEN_HEALTH_PORT\"]}/livez', timeout=4)"]
# The exec form: Python is process 1 and gets SIGTERM itself.
ENTRYPOINT ["stylegen-worker"]

# The worker's image and an S3 server, for compose.yaml's demo.
FROM worker AS demo
USER 0
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir -c /tmp/constraints.txt ministack
USER 10001:10001

# What `docker build` makes when it is told no target.
FROM worker
