# Images for running iekd-compress.
#
#   docker build --target cpu -t iekd-compress .
#   docker run --rm -v "$PWD":/work iekd-compress --teacher resnet50 --student mobilenet --out /work/run
#
#   docker build --target gpu --build-arg GPU_BASE=<an image with CUDA, TensorRT and Python 3.10 or later> -t iekd-compress:gpu .
#
# BASE may be any Debian or Ubuntu image whose Python is 3.10 or later, or that has none: then the distribution's is installed.

ARG BASE=python:3.12-slim-bookworm
ARG GPU_BASE=scratch

# ---------------------------------------------------------------- the package's files, and nothing else
FROM ${BASE} AS source
COPY pyproject.toml README.md /src/
COPY src /src/src
COPY compress /src/compress
COPY deploy /src/deploy
COPY models /src/models

# ---------------------------------------------------------------- CPU: ONNX Runtime
FROM ${BASE} AS cpu
RUN command -v python3 >/dev/null && python3 -m venv --help >/dev/null 2>&1 || \
    { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates && \
      rm -rf /var/lib/apt/lists/*; }
RUN --mount=type=bind,from=source,source=/src,target=/src,rw \
    python3 -m venv /opt/iekd && /opt/iekd/bin/pip install --no-cache-dir '/src[cpu]'
RUN useradd --create-home --uid 1000 iekd
USER iekd
WORKDIR /home/iekd
ENV PATH=/opt/iekd/bin:$PATH PYTHONUNBUFFERED=1
HEALTHCHECK --interval=1m --timeout=10s CMD ["iekd-compress", "doctor"]
ENTRYPOINT ["iekd-compress"]
CMD ["--help"]

# ---------------------------------------------------------------- GPU: onnxruntime-gpu, and the TensorRT of the base image
FROM ${GPU_BASE} AS gpu
RUN --mount=type=bind,from=source,source=/src,target=/src,rw \
    python3 -m venv --system-site-packages /opt/iekd && \
    /opt/iekd/bin/pip install --no-cache-dir /src 'onnxruntime-gpu>=1.22'
RUN useradd --create-home iekd
USER iekd
WORKDIR /home/iekd
ENV PATH=/opt/iekd/bin:$PATH PYTHONUNBUFFERED=1
HEALTHCHECK --interval=1m --timeout=10s CMD ["iekd-compress", "doctor"]
ENTRYPOINT ["iekd-compress"]
CMD ["--help"]
