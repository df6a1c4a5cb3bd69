# The controller image with this package: docker build -f controller.Dockerfile -t registry.example/expunge-controller:mine .
ARG IMAGE=expunge-controller
FROM ${IMAGE}
USER 0
COPY . /tmp/plugin
RUN pip install --no-cache-dir --no-deps /tmp/plugin && rm -r /tmp/plugin
USER 65532
