# Builds the wheels and installs them. docs/clusters.md has the commands for CPU and CUDA.
#
# BASE: an image with Python 3.11 or later. If it has a PyTorch, that one is kept.
# DETECTRON2: "lite", or an address that pip installs, which needs a compiler in BASE.
ARG BASE=python:3.11-slim

FROM python:3.11-slim AS build
COPY . /source
RUN pip wheel --no-deps --wheel-dir /wheels \
    /source /source/compat/detectron2-lite /source/projects/PSDiff/weights

FROM ${BASE}
ARG DETECTRON2=lite
ARG EXTRAS=all
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONUNBUFFERED=1
# OpenCV draws without a display, but its library links against one
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/
RUN python -c "import torch" 2> /dev/null || pip install --no-cache-dir -c /wheels/constraints.txt torch torchvision
RUN pip install --no-cache-dir "$(echo /wheels/person_search-*.whl)[${EXTRAS}]" /wheels/person_search_demo_weights-*.whl \
    && if [ "$DETECTRON2" = lite ]; then pip install --no-cache-dir /wheels/detectron2_lite-*.whl; \
       else pip install --no-cache-dir --no-build-isolation "$DETECTRON2"; fi \
    && python -m person_search.utils.collect_env
WORKDIR /data
CMD ["person-search", "--help"]
