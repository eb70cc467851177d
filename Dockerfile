# syntax=docker/dockerfile:1
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin crossfade

FROM debian:bookworm-slim
RUN useradd --system --home-dir /var/lib/crossfade --create-home crossfade
COPY --from=build /src/target/release/crossfade /usr/local/bin/crossfade
USER crossfade
WORKDIR /var/lib/crossfade
VOLUME /var/lib/crossfade
EXPOSE 6400 6401
ENTRYPOINT ["crossfade"]
CMD ["run", "--listen", "0.0.0.0:6400", "--state-dir", "/var/lib/crossfade/state"]
