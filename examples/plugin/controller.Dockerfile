# The controller image with this package: docker build -f controller.Dockerfile -t registry.example/expunge-controller:mine .
ARG IMAGE=expunge-controller
FROM ${IMAGE}
USER 0
# For machines whose certificates are their own; stays out of the image.
ARG SSL_CERT_FILE
COPY . /tmp/plugin
RUN pip install --no-cache-dir --no-deps /tmp/plugin && rm -r /tmp/plugin
USER 65532:65532
