#!/usr/bin/env bash
# Build the image, start the service in it as its user, with nothing writable but /tmp, ask it, end it, and weigh it.
# Usage: docker/check.sh [BUILD-ARG=VALUE ...]      e.g. docker/check.sh TORCH_INDEX= BASE_IMAGE=python:3.12-slim-bookworm
#   IMAGE=NAME      how the image is called (superpoint-frontend:check)
#   BUILD=no        check an image that is there already
#   MAX_MB=N        most megabytes of files (1200: what the CPU image may weigh; 0 for no limit)
#   ENGINE=NAME     docker, podman or buildah; otherwise the first of them that works
#   IMAGE_BUILDER=COMMAND   another builder instead: COMMAND DOCKERFILE CONTEXT IMAGE [BUILD-ARG=VALUE ...] builds, and
#                   COMMAND --run IMAGE -v HOST:CONTAINER ... -- COMMAND ... runs a command in the image
# Without any of them it says 'skipped: no container engine', and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."
image=${IMAGE:-superpoint-frontend:check} limit=${MAX_MB:-1200}
[ "$limit" != 0 ] || limit=inf

works() {
  case $1 in
    docker | podman) command -v "$1" >/dev/null && timeout 20 "$1" info >/dev/null 2>&1 ;;
    buildah) command -v buildah >/dev/null && timeout 20 buildah images >/dev/null 2>&1 ;;
    *) echo "check.sh: ENGINE is '$1'; expected docker, podman or buildah" >&2; exit 2 ;;
  esac
}

engine=${ENGINE:-}
if [ -n "${IMAGE_BUILDER:-}" ]; then
  engine=other
elif [ -z "$engine" ]; then
  for candidate in docker podman buildah; do
    if works "$candidate"; then engine=$candidate; break; fi
  done
  [ -n "$engine" ] || { echo "skipped: no container engine"; exit 0; }
elif ! works "$engine"; then
  echo "check.sh: $engine does not work here" >&2; exit 2
fi

arguments=()
for argument in "$@"; do arguments+=(--build-arg "$argument"); done
# podman and buildah: their own format has no HEALTHCHECK
build() {
  case $engine in
    docker) docker build "${arguments[@]}" -t "$image" -f docker/Dockerfile . ;;
    podman | buildah) "$engine" build --format docker "${arguments[@]}" -t "$image" -f docker/Dockerfile . ;;
    other) $IMAGE_BUILDER docker/Dockerfile . "$image" "$@" ;;
  esac
}

run() {
  local mounts=(-v "$PWD/docker:/check:ro" -v "$PWD/frontend/samples:/samples:ro")
  case $engine in
    docker | podman)
      "$engine" run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges "${mounts[@]}" "$image" "$@" ;;
    buildah)
      local container
      container=$(buildah from --pull-never "$image")
      trap 'buildah rm "$container" >/dev/null' RETURN
      buildah run --cap-drop ALL "${mounts[@]}" "$container" -- "$@" ;;
    other) $IMAGE_BUILDER --run "$image" "${mounts[@]}" -- "$@" ;;
  esac
}

[ "${BUILD:-yes}" = no ] || build "$@"
run python /check/check.py /samples "$limit"
echo "passed: $image"
