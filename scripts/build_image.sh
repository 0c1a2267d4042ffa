#!/bin/sh
# Build the image of the Dockerfile without a daemon, by buildah, and print its name. It needs root (Debian: buildah).
# BASE names another base image. Where no registry of images is reached, BASE=debian makes one of Debian's packages, with
# Debian's Python 3.11 (mmdebstrap). EXTRAS installs other extras than the Dockerfile's: cluster makes a small image.
set -eu

export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
cd "$(dirname "$0")/.."
image=localhost/llavamed:$(sed -n 's/^__version__ = "\(.*\)"/\1/p' llavamed/__init__.py)

make_base() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,ca-certificates \
        --aptopt='APT::Install-Recommends "false"' bookworm "$work/root.tar" >&2
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/root.tar" / >/dev/null
    # As in Python's own image: `python`, and a pip that may install beside Debian's packages.
    buildah run "$container" -- sh -c 'ln -s python3 /usr/bin/python; rm -f /usr/lib/python3*/EXTERNALLY-MANAGED' >&2
    buildah commit --quiet --rm "$container" "$1" >/dev/null
}

if [ "${BASE:-}" = debian ]; then
    BASE=localhost/python:3.11-debian
    buildah inspect --type image "$BASE" >/dev/null 2>&1 || make_base "$BASE"
fi
set -- --tag "$image" ${BASE:+--build-arg BASE="$BASE"} ${EXTRAS:+--build-arg EXTRAS="$EXTRAS"}
# What pip needs on this machine to reach packages, such as the certificate of a proxy.
if [ -f /etc/pip.conf ]; then
    set -- "$@" --volume /etc/pip.conf:/etc/pip.conf:ro --volume /etc/ssl/certs:/etc/ssl/certs:ro
fi
buildah build "$@" . >&2
echo "$image"
