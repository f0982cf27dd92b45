# One image for CPU and CUDA: torch's wheel for Linux brings CUDA's libraries.
#   docker build --tag dcsft .
#   docker build --tag dcsft-vllm --build-arg EXTRAS=train,vllm --build-arg CONSTRAINTS=/dev/null .
#   docker run --rm --gpus all --volume "$PWD:/work" dcsft sample --model CKPT --data train.jsonl ...
FROM python:3.11-slim
ARG EXTRAS=train
ARG CONSTRAINTS=constraints.txt
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir ".[$EXTRAS]" --constraint "$CONSTRAINTS" && rm -rf /src/build
WORKDIR /work
ENTRYPOINT ["dcsft"]
