# Images of Millrace, from the root of a checkout, with Docker, Podman or Buildah:
#
#   buildah build --target cpu -t millrace:0.1.0 .
#   buildah build --target cuda -t millrace:0.1.0-cuda .
#
# The final stages hold what scripts/image_root.py lists (their SBOM: /usr/share/millrace/sbom.spdx.json) and no shell.
# They run as user 10001, with a read-only root if /tmp is writable. tini is process 1: mpirun leaves orphans to reap.
ARG BASE=debian:bookworm-slim
# CUDA 13.0 or later with nvcc and NCCL, of a distribution whose C library is not newer than Debian 12's.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu22.04

FROM ${BASE} AS source
ENV DEBIAN_FRONTEND=noninteractive
WORKDIR /src
COPY scripts/install-deps scripts/
RUN scripts/install-deps && rm -rf /var/lib/apt/lists /var/cache/apt/archives
COPY . .

FROM source AS build-cpu
# Set it to the commit's time for an image that comes out the same each time.
ARG SOURCE_DATE_EPOCH
RUN cmake --preset cpu -DMILLRACE_TESTS=OFF && cmake --build build/cpu --target millrace \
 && scripts/image_root.py --binary build/cpu/bin/millrace --out /image

FROM ${CUDA_IMAGE} AS cuda-toolkit

FROM source AS build-cuda
ARG SOURCE_DATE_EPOCH
COPY --from=cuda-toolkit /usr/local/ /usr/local/
COPY --from=cuda-toolkit /usr/include/nccl*.h /usr/include/
COPY --from=cuda-toolkit /usr/lib/x86_64-linux-gnu/libnccl.so* /usr/lib/x86_64-linux-gnu/
ENV PATH=/usr/local/cuda/bin:${PATH}
RUN cmake --preset cuda -DMILLRACE_TESTS=OFF && cmake --build build/cuda --target millrace \
 && scripts/image_root.py --binary build/cuda/bin/millrace --out /image \
      --library /usr/lib/x86_64-linux-gnu/libnccl.so.2

FROM scratch AS cuda
COPY --from=build-cuda /image /
LABEL org.opencontainers.image.title="Millrace (CUDA)" \
      org.opencontainers.image.description="Inference cluster for Liquid AI's LFM2 models" \
      org.opencontainers.image.licenses="Apache-2.0"
# NVIDIA's container runtime mounts the driver into containers that ask for it this way.
ENV PATH=/usr/bin HOME=/tmp NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/bin/millrace"]
CMD ["serve", "--model", "/usr/share/millrace/models/sample", "--host", "0.0.0.0"]

FROM scratch AS cpu
COPY --from=build-cpu /image /
LABEL org.opencontainers.image.title="Millrace" \
      org.opencontainers.image.description="Inference cluster for Liquid AI's LFM2 models" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/usr/bin HOME=/tmp
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/bin/millrace"]
CMD ["serve", "--model", "/usr/share/millrace/models/sample", "--host", "0.0.0.0"]
