# docker build -t nasd .
# docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined nasd demo
#
# For a node, give it its configuration and its state, and let its mount be seen outside (the mount point has to be on a
# shared mount: mount --bind P P && mount --make-rshared P):
#   -v /etc/nasd:/etc/nasd:ro -v /var/lib/nasd:/var/lib/nasd -v /srv:/srv:rshared -p 7400:7400

FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev protobuf-compiler libprotobuf-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p nasd && strip target/release/nasd

FROM debian:bookworm-slim
COPY --from=build /src/target/release/nasd /usr/local/bin/nasd
# A node stops in order on SIGTERM.
ENTRYPOINT ["nasd"]
CMD ["run"]
