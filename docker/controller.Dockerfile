# The controller and its command line, without torch. From the project's root:
#   docker build -f docker/controller.Dockerfile -t registry/expunge-controller:0.1.0 .
# The base needs python3 (3.11+) with venv, and CA certificates.
ARG BASE=docker.io/library/python:3.11-slim
# hadolint ignore=DL3006
FROM ${BASE}

WORKDIR /build
COPY pyproject.toml constraints.txt ./
# For machines whose certificates are their own; stays out of the image.
ARG SSL_CERT_FILE
RUN python3 -m venv /opt/expunge \
    && /opt/expunge/bin/pip install --no-cache-dir --constraint constraints.txt uv \
    && /opt/expunge/bin/uv pip install --no-cache --python /opt/expunge/bin/python --compile-bytecode \
       --constraint constraints.txt --requirements pyproject.toml --extra operator
COPY README.md LICENSE ./
COPY controller controller
COPY jobs jobs
RUN /opt/expunge/bin/uv pip install --no-cache --python /opt/expunge/bin/python --compile-bytecode --no-deps .

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="expunge-controller" \
      org.opencontainers.image.description="Submits and follows unlearning experiments on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/expunge/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /
USER 65532:65532
ENTRYPOINT ["expunge"]
