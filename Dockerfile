# syntax=docker/dockerfile:1
#
#   docker build --target cpu  -t ahamask:cpu  .     the default target
#   docker build --target cuda -t ahamask:cuda .     needs the NVIDIA container toolkit to run
#
# The image runs as an ordinary user and with a read-only root: all it writes is /tmp and, for models from the
# Hugging Face hub, /var/cache/huggingface.

ARG PYTHON=python:3.11-slim-bookworm

# --- what is built: an environment for each target, and the code, which is the same for both -------------------
FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
WORKDIR /src
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && python -c "import tomllib; e = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*e['otel'], sep='\n')" \
        > extras-cpu.txt \
    && python -c "import tomllib; e = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*e['otel'], *e['salmonn'], *e['quant'], sep='\n')" \
        > extras-cuda.txt \
    && grep '^torch==' requirements.txt > torch.txt

FROM build AS venv-cpu
RUN pip --python /opt/venv/bin/python install --index-url https://download.pytorch.org/whl/cpu -r torch.txt
RUN pip --python /opt/venv/bin/python install -r requirements.txt -r extras-cpu.txt

FROM build AS venv-cuda
RUN pip --python /opt/venv/bin/python install -r torch.txt
RUN pip --python /opt/venv/bin/python install -r requirements.txt -r extras-cuda.txt

FROM build AS code
COPY . .
RUN pip --python /opt/venv/bin/python install --no-deps --target /app . \
    && mv masks /app/masks

# --- what runs: Python, an environment, the code; neither compiler nor pip --------------------------------------
FROM ${PYTHON} AS runtime
RUN pip uninstall -y -q pip setuptools wheel \
    && useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent ahamask \
    && install -d -o ahamask -g ahamask /var/cache/huggingface
ENV PATH=/opt/venv/bin:/app/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/var/cache/huggingface \
    AHAMASK_HOST=0.0.0.0 \
    AHAMASK_LOG_JSON=true \
    PORT=8080
WORKDIR /app
COPY --from=code /app /app
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + (os.environ.get('AHAMASK_PORT') or os.environ['PORT']) + '/healthz', timeout=4)"]
USER ahamask
ENTRYPOINT ["ahamask"]
CMD ["serve"]

FROM runtime AS cuda
ENV AHAMASK_DEVICE=cuda AHAMASK_DTYPE=bfloat16
COPY --from=venv-cuda /opt/venv /opt/venv

FROM runtime AS cpu
COPY --from=venv-cpu /opt/venv /opt/venv
