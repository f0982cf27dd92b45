# One image for CPU and CUDA: torch's wheel for Linux brings CUDA's libraries. ADDRESS: of its wheels for CPUs.
#   docker build --tag dcsft .
#   docker build --tag dcsft-cpu --build-arg PIP_EXTRA_INDEX_URL=ADDRESS .
#   docker build --tag dcsft-vllm --build-arg EXTRAS=train,vllm --build-arg CONSTRAINTS=/dev/null .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/work" --volume ~/.cache:/tmp/.cache \
#       dcsft sample --model CKPT --data train.jsonl ...
ARG BASE=python:3.11-slim
FROM $BASE
ARG EXTRAS=train
ARG CONSTRAINTS=constraints.txt
# pip reads these by itself: where else to look for wheels.
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir ".[$EXTRAS]" --constraint "$CONSTRAINTS" && rm -rf /src/build
# A user who is not in the image's list of users has no home and no name: caches go here.
ENV HOME=/tmp USER=dcsft
WORKDIR /work
ENTRYPOINT ["dcsft"]
