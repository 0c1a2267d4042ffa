# The one image of llavamed: the Ray pods run it, and so does the MLflow server, whose version then is the clients'.
# Build from the root of the repository: docker build --tag REGISTRY/llavamed:0.1.0 .
#
# Python's slim image, not Ray's: the CUDA libraries come with torch as packages, at the versions of
# constraints.txt, so Ray's CUDA image would bring a second copy of them, and a second Python environment.
# BASE may be your registry's copy of it, or another image of Debian with `python` and `pip`.
ARG BASE=python:3.11-slim-trixie
FROM ${BASE}

# g++: Triton compiles its kernels' launchers where they are first used (torch.compile, flex_attention).
# wget: the probes of Ray Serve workers under KubeRay. Both it and bash, for `ray start`, must be in the image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash g++ wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --create-home --shell /bin/bash ray

# Which driver libraries the NVIDIA runtime mounts. Which GPUs is for Kubernetes to say, so not set here.
# HOME: the caches of the hub and of Triton, for a user of any number, as OpenShift assigns one.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/tmp \
    PYTHONUNBUFFERED=1

WORKDIR /app

# Dependencies in a layer of their own, some 6 GB: only these files renew it, not a change of the code.
ARG EXTRAS=card,dicom,gcs,gguf,liger,llm,postgres,quantize,serve,train
COPY constraints.txt pyproject.toml LICENSE ./
COPY llavamed/__init__.py llavamed/
RUN touch README.md \
    && pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

COPY README.md ./
COPY llavamed llavamed
COPY ray_jobs ray_jobs
RUN pip install --no-cache-dir --no-deps --force-reinstall .

# By number: Kubernetes cannot tell from a name that it is not root.
USER 1000:1000
