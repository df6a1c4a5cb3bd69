# The jobs image with this package: docker build -f jobs.Dockerfile -t registry.example/expunge-jobs:mine .
ARG IMAGE=expunge-jobs
FROM ${IMAGE}
USER 0
# For machines whose certificates are their own; stays out of the image.
ARG SSL_CERT_FILE
COPY . /tmp/plugin
RUN pip install --no-cache-dir --no-deps /tmp/plugin && rm -r /tmp/plugin
USER 65532:65532
