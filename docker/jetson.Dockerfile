# Export, test, bench and predict on a Jetson Xavier NX with JetPack 5.1 (Jetson Linux 35, TensorRT 8.5.2, Python 3.8).
# Not yet built: no container can be built where uad is made.
#   docker build -f docker/jetson.Dockerfile -t uad-jetson .          on the Jetson itself
#   docker run --runtime nvidia --rm -v "$PWD:/work" uad-jetson doctor
# The base has TensorRT with its Python module, and the nvcc that compiles pycuda; the runtime image has no nvcc.
FROM nvcr.io/nvidia/l4t-tensorrt:r8.5.2.2-devel
ENV PATH=/usr/local/cuda/bin:$PATH PIP_NO_CACHE_DIR=1 LC_ALL=C.UTF-8
RUN useradd --uid 1000 --create-home --groups video uad
WORKDIR /uad
COPY pyproject.toml README.md LICENSE ./
COPY docker/jetson-constraints.txt ./
COPY engines engines
COPY export export
COPY uad uad
COPY configs configs
RUN python3 -m pip install pip==24.3.1 setuptools==75.3.2 wheel==0.45.1 \
    && python3 -m pip install --no-build-isolation --constraint jetson-constraints.txt '.[tensorrt]'
USER 1000
WORKDIR /work
ENTRYPOINT ["uad"]
