# The demo's services: one image, and the service is its command, such as `clew.demo.gateway`.

FROM python:3.11.15-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/clew
# The locked dependencies are a layer of their own: a change of the code does not install them anew.
COPY requirements/demo.txt requirements/demo.txt
RUN /opt/clew/bin/pip install --require-hashes -r requirements/demo.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/clew/bin/pip install --no-deps --no-build-isolation . \
    && /opt/clew/bin/python -m compileall -q /opt/clew/lib

FROM python:3.11.15-slim
COPY --from=build /opt/clew /opt/clew
ENV PATH=/opt/clew/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
# A number, so that "runs as no root" can be checked without looking into the image.
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m"]
CMD ["clew.demo.gateway"]
