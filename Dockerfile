# docker build -t goip-mqtt-bridge .
# docker run -p 44444:44444/udp -v goip-data:/data -e GOIP_MQTT__URL=mqtt://broker -e GOIP_LINES='{…}' goip-mqtt-bridge

FROM python:3.13-slim AS build
RUN python -m venv /venv
WORKDIR /build
COPY pyproject.toml ./
# The dependencies in a layer of their own: it stays while only our code changes.
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        >dependencies.txt \
 && /venv/bin/pip install --no-cache-dir -r dependencies.txt
COPY README.md LICENSE ./
COPY bridge bridge
RUN /venv/bin/pip install --no-cache-dir --no-deps . && /venv/bin/pip check


FROM python:3.13-slim
LABEL org.opencontainers.image.title="goip-mqtt-bridge" \
      org.opencontainers.image.description="An SMS server for GoIP GSM gateways that speaks MQTT" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="python:3.13-slim"

# A fixed number, so that a host directory mounted as /data can be given to it: chown 10001:10001.
RUN groupadd --system --gid 10001 goip \
 && useradd --system --uid 10001 --gid goip --no-create-home --home-dir /data --shell /usr/sbin/nologin goip \
 && install -d -o goip -g goip -m 0700 /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

# The store (goip-bridge.db), and config.yaml where there is one: both are looked for in the working directory.
WORKDIR /data
VOLUME /data
USER 10001:10001
EXPOSE 44444/udp

# Asks the bridge itself, by the socket beside its store: a broker that is asked could take it for the bridge.
HEALTHCHECK --interval=15s --timeout=15s --start-period=30s --retries=3 CMD ["goip-bridge", "health"]
ENTRYPOINT ["goip-bridge"]
CMD ["run"]
