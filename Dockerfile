# aap-hw with everything that it needs, of Debian's image, Debian's packages and the Python package index.
#
#   docker build -t aap-hw .
#   docker run --rm -it -v "$PWD":/work aap-hw plan --model mobilenetv2 --lut x86 --budget 60%
#
# The image takes 7.7 GB, most of it CUDA's libraries, which the package index's PyTorch brings. Commands write into the
# mounted folder: if it is not of a user with the number 1000, add --user "$(id -u):$(id -g)".
# Built by buildah on Debian 13 and 12, each made by debootstrap, and run there, for other users, too; Docker itself was
# not at hand.
# Behind a mirror: --build-arg PIP_INDEX_URL=https://... and, for Debian, --build-arg BASE=your.registry/debian:13-slim.
# A certificate of your own network goes into /usr/local/share/ca-certificates of that base.
# Debian 13 has Python 3.13; Debian 12 has 3.11 (BASE=debian:12-slim).
ARG BASE=debian:13-slim
FROM ${BASE} AS wheel
ARG PIP_INDEX_URL
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /build && /build/bin/pip install --no-cache-dir build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY aap_hw aap_hw
COPY device_profiles device_profiles
COPY lut lut
RUN /build/bin/python -m build --wheel --outdir /dist

FROM ${BASE}
ARG PIP_INDEX_URL
ARG DEBIAN_FRONTEND=noninteractive
# TVM links what it compiles with g++; the second one is for boards with 64-bit Arm.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv g++ g++-aarch64-linux-gnu \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist/*.whl /tmp/
RUN python3 -m venv /opt/aap-hw \
    && /opt/aap-hw/bin/pip install --no-cache-dir "$(ls /tmp/*.whl)[onnx,timm,rpc]" \
    && rm /tmp/*.whl
ENV PATH=/opt/aap-hw/bin:$PATH
# Whoever --user names can write to the home folder, where weights and compiled kernels are kept; as in /tmp, what
# someone makes there is theirs alone: compiled kernels are executed.
RUN useradd --create-home user && chmod 1777 /home/user && install -d -o user /work
ENV HOME=/home/user
USER user
WORKDIR /work
ENTRYPOINT ["aap-hw"]
CMD ["--help"]
