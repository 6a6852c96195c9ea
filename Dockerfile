# Images for running iekd-compress, each as the user `iekd`.
#
#   docker build --target cpu -t iekd-compress .
#   docker run --rm -v "$PWD":/images iekd-compress --teacher resnet50 --student mobilenet --out /images/run
#   docker build --target gpu --build-arg GPU_BASE=<NVIDIA's tensorrt image> -t iekd-compress:gpu .
#   docker build --target jetpack --build-arg JETPACK_BASE=<NVIDIA's l4t-jetpack image of the board's release> -t iekd-compress:jetpack .
#
# /images must be writable by uid 1000; others add `--user "$(id -u):$(id -g)" -e HOME=/tmp`.
# That is uid 1000 in each image, also where the base has a user of that number already, as Ubuntu 24.04's `ubuntu`.
# Behind a mirror, pip's own configuration goes along without becoming a part of the image: `--secret id=pip.conf,src=$HOME/.config/pip/pip.conf`.
# A base is any Debian or Ubuntu image whose Python is 3.10 or later, or that has none: then the distribution's is installed.

ARG BASE=python:3.12-slim-bookworm
# These two have no default: which one fits is a matter of the driver, or of the JetPack on the board.
ARG GPU_BASE=scratch
ARG JETPACK_BASE=scratch

# ---------------------------------------------------------------- the package's files, and nothing else
FROM scratch AS source
COPY pyproject.toml README.md constraints.txt /src/
COPY src /src/src
COPY compress /src/compress
COPY deploy /src/deploy
COPY models /src/models

# ---------------------------------------------------------------- CPU: ONNX Runtime
FROM ${BASE} AS cpu
RUN python3 -c 'import ensurepip' 2>/dev/null || \
    { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates && \
      rm -rf /var/lib/apt/lists/*; }
# Versions as tested; empty: the newest that pyproject.toml allows.
ARG CONSTRAINTS=constraints.txt
# PyTorch's default wheels bring 4 GB of CUDA libraries; its index of CPU wheels (pytorch.org, "Get started") spares them.
ARG TORCH_INDEX=
RUN --mount=type=bind,from=source,source=/src,target=/src,rw \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/iekd && \
    { [ -z "$TORCH_INDEX" ] || /opt/iekd/bin/pip install --no-cache-dir ${CONSTRAINTS:+-c /src/$CONSTRAINTS} --index-url "$TORCH_INDEX" torch torchvision; } && \
    /opt/iekd/bin/pip install --no-cache-dir ${CONSTRAINTS:+-c /src/$CONSTRAINTS} '/src[cpu]'
RUN useradd --create-home --uid 1000 --non-unique iekd
USER iekd
WORKDIR /home/iekd
ENV PATH=/opt/iekd/bin:$PATH PYTHONUNBUFFERED=1
HEALTHCHECK --interval=1m --timeout=30s CMD ["iekd-compress", "doctor"]
ENTRYPOINT ["iekd-compress"]
CMD ["--help"]

# ---------------------------------------------------------------- GPU: onnxruntime-gpu, and the TensorRT of the base image
FROM ${GPU_BASE} AS gpu
RUN python3 -c 'import ensurepip' 2>/dev/null || \
    { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates && \
      rm -rf /var/lib/apt/lists/*; }
# As above; empty where the base has a Python older than 3.11.
ARG CONSTRAINTS=constraints.txt
RUN --mount=type=bind,from=source,source=/src,target=/src,rw \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv --system-site-packages /opt/iekd && \
    /opt/iekd/bin/python -c 'import importlib.util, sys; importlib.util.find_spec("tensorrt") or sys.exit("GPU_BASE has no TensorRT for python3")' && \
    /opt/iekd/bin/pip install --no-cache-dir ${CONSTRAINTS:+-c /src/$CONSTRAINTS} '/src[search]' 'onnxconverter-common>=1.14' 'onnxruntime-gpu>=1.22'
RUN useradd --create-home --uid 1000 --non-unique iekd
USER iekd
WORKDIR /home/iekd
ENV PATH=/opt/iekd/bin:$PATH PYTHONUNBUFFERED=1
HEALTHCHECK --interval=1m --timeout=30s CMD ["iekd-compress", "doctor"]
ENTRYPOINT ["iekd-compress"]
CMD ["--help"]

# ---------------------------------------------------------------- JetPack: the board's own TensorRT, ONNX Runtime on its CPU
FROM ${JETPACK_BASE} AS jetpack
RUN python3 -c 'import ensurepip' 2>/dev/null || \
    { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates && \
      rm -rf /var/lib/apt/lists/*; }
# No constraints: JetPack 6 has Python 3.10, and NVIDIA's wheels their own versions.
# NVIDIA's index of PyTorch wheels for this JetPack; without it PyTorch's own wheel comes, which on JetPack 6 knows the CPU only.
ARG TORCH_INDEX=
RUN --mount=type=bind,from=source,source=/src,target=/src,rw \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv --system-site-packages /opt/iekd && \
    /opt/iekd/bin/python -c 'import importlib.util, sys; importlib.util.find_spec("tensorrt") or sys.exit("JETPACK_BASE has no TensorRT for python3")' && \
    { [ -z "$TORCH_INDEX" ] || /opt/iekd/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision; } && \
    /opt/iekd/bin/pip install --no-cache-dir '/src[cpu]'
RUN useradd --create-home --uid 1000 --non-unique --groups video iekd
USER iekd
WORKDIR /home/iekd
ENV PATH=/opt/iekd/bin:$PATH PYTHONUNBUFFERED=1
HEALTHCHECK --interval=1m --timeout=30s CMD ["iekd-compress", "doctor"]
ENTRYPOINT ["iekd-compress"]
CMD ["--help"]
