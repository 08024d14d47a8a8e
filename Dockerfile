# One image for the API, the workers and Flower; docker-compose.yml says which command each runs.
#
# To add agents of your own, build on it:
#     FROM durable-agents
#     COPY my_agents /app/my_agents
# and set DURABLE_AGENTS=my_agents. What they import is installed by `pip` as root in such a layer.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
# Every file is checked against its hash. This layer changes only with the lock file.
COPY requirements-image.lock /app/
RUN /opt/venv/bin/pip install --require-hashes --no-deps --requirement /app/requirements-image.lock
COPY pyproject.toml README.md /app/
COPY durable /app/durable
COPY worker /app/worker
COPY api /app/api
# Editable, so that `worker.app` and `api.app` have the names here that they have in the repository.
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation --editable /app \
    && python -m compileall -q /app

FROM python:3.13-slim
RUN groupadd --gid 10001 durable && useradd --uid 10001 --gid durable --no-create-home --home-dir /app durable
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY examples /app/examples
WORKDIR /app
USER 10001:10001
# Exec form here and in every compose file: SIGTERM must reach the program, not a shell.
CMD ["durable", "--help"]
