# Static programs in images that hold nothing else: no shell, no root.
# Targets: tiergate (the default) and mockai, the mock AI upstream.

FROM golang:1.26.8-alpine AS build
WORKDIR /src
ENV CGO_ENABLED=0 GOTOOLCHAIN=local
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
RUN go build -trimpath -ldflags=-s -o /out/ ./cmd/tiergate ./cmd/mockai

FROM scratch AS mockai
COPY --from=build /out/mockai /
USER 65532:65532
ENTRYPOINT ["/mockai"]

FROM scratch AS tiergate
COPY --from=build /out/tiergate /
USER 65532:65532
ENTRYPOINT ["/tiergate"]
CMD ["serve", "--config", "/etc/tiergate/tiergate.yaml"]
