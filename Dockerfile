# For machines with an NVIDIA driver and NVIDIA's container toolkit. Not tested: neither
# Docker nor a GPU was at hand.
#
#   docker build -t dreamer .
#   docker run --gpus all -v "$PWD/logs:/dreamer/logs" dreamer --task dmc_walker_walk
#
# `docker stop -t 300` gives a run the time to save.
FROM python:3.11-slim

# MuJoCo renders with EGL. NVIDIA's part of it comes from the host, but only if graphics
# are among the driver's capabilities.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libopengl0 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

WORKDIR /dreamer
COPY requirements.txt requirements-gpu.txt ./
RUN pip install --no-cache-dir -r requirements-gpu.txt
COPY . .

ENTRYPOINT ["python", "dreamer.py"]
CMD ["--help"]
