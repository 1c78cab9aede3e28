# nasd in containers; docs/docker.md tells how. Targets:
#   nasd      the node and its command line (the last one, so what is built when none is named)
#   postgres  the same with PostgreSQL, for compose.yaml
#   etcd      Debian's etcd, for compose.yaml

# Where these can't be pulled, any Debian 12 will do, and one with Rust 1.90 or newer and a C compiler.
ARG DEBIAN=debian:bookworm-slim
ARG RUST=rust:1-slim-bookworm

FROM ${DEBIAN} AS etcd
RUN apt-get update && apt-get install -y --no-install-recommends etcd-server && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["etcd"]

# All of nasd's image but nasd.
FROM ${DEBIAN} AS runtime
# A node stops in order: it finishes commits, seals what is pending, and unmounts.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=1m --retries=3 CMD ["nasd", "status"]
ENTRYPOINT ["nasd"]
CMD ["run"]

FROM runtime AS runtime-postgres
ENV PATH=/usr/lib/postgresql/15/bin:$PATH
# Debian's package would make a cluster.
RUN mkdir -p /etc/postgresql-common/createcluster.d \
 && echo create_main_cluster = false >/etc/postgresql-common/createcluster.d/none.conf \
 && apt-get update && apt-get install -y --no-install-recommends postgresql-15 && rm -rf /var/lib/apt/lists/* \
 && install -d -o postgres -g postgres /run/postgresql
COPY docker/postgres.sh /usr/local/bin/nasd-postgres
COPY docker/setup.sh /usr/local/bin/nasd-setup

FROM ${RUST} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev protobuf-compiler libprotobuf-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p nasd && strip target/release/nasd

FROM runtime-postgres AS postgres
COPY --from=build /src/target/release/nasd /usr/local/bin/nasd

FROM runtime AS nasd
COPY --from=build /src/target/release/nasd /usr/local/bin/nasd
