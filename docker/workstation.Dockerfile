# Training and export on a workstation with an NVIDIA GPU. Not yet built: no container can be built where uad is made.
#   docker build -f docker/workstation.Dockerfile -t uad .
#   docker run --gpus all --user "$(id -u):$(id -g)" --shm-size 2g -v /path/to/images:/images -v "$PWD/runs:/runs" uad \
#       fit --config configs/stfpm.yaml --data.root /images --out /runs/first
FROM python:3.11.14-slim
WORKDIR /uad
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY engines engines
COPY export export
COPY uad uad
COPY configs configs
RUN pip install --no-cache-dir --constraint constraints.txt '.[train,openvino]' \
    && useradd --uid 1000 --create-home uad
USER 1000
ENTRYPOINT ["uad"]
