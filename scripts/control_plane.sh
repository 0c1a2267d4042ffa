#!/bin/sh
# Build a Kubernetes control plane for the tests: the API server, the controller manager, the scheduler, kwok (fake
# nodes) and helm 3 and 4. Print the folder of the programs. The first build takes about ten minutes of two cores;
# later calls find the programs and return at once. Needs Go; etcd comes from the system (Debian: etcd-server).
set -eu

KUBERNETES=1.36.3
KWOK=0.8.0
HELM3=3.22.0
HELM4=4.3.1

cache=${LLAVAMED_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llavamed}
bin=$cache/control-plane-$KUBERNETES-kwok-$KWOK-helm-$HELM3-$HELM4
mkdir -p "$bin"

command -v go >/dev/null || {
    echo "go: not found; install Go 1.26 to build the control plane that the cluster tests run on" >&2
    exit 1
}

# Two builds at once would do the same work twice: the second waits, and finds what the first has built.
exec 9>"$bin/.lock"
flock 9

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOFLAGS="${GOFLAGS:-} -trimpath -modcacherw" CGO_ENABLED=0

# $1: program, $2: package@version that installs it.
install_program() {
    [ -x "$bin/$1" ] && return
    echo "building $1" >&2
    GOBIN=$work/bin go install -ldflags "-s -w" "$2"
    mv "$work/bin/$(basename "${2%@*}")" "$bin/$1"
}

# The commands of Kubernetes need their libraries by `replace`, so they are built in a module of their own.
build_kubernetes() {
    for command in kube-apiserver kube-controller-manager kube-scheduler; do
        [ -x "$bin/$command" ] || missing="${missing:-} $command"
    done
    [ -n "${missing:-}" ] || return 0
    mkdir "$work/module"
    cd "$work/module"
    go mod init controlplane >/dev/null 2>&1
    sums=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
    {
        echo "require k8s.io/kubernetes v$KUBERNETES"
        sed -n "s|^\t*\(k8s.io/[a-z-]*\) => ./staging/.*|replace \1 => \1 v0.${KUBERNETES#1.}|p" "$sums"
    } >>go.mod
    version=k8s.io/component-base/version
    minor=${KUBERNETES#1.}
    for command in $missing; do
        echo "building $command" >&2
        go build -mod=mod -o "$work/bin/" -ldflags "-s -w -X $version.gitVersion=v$KUBERNETES \
            -X $version.gitMajor=1 -X $version.gitMinor=${minor%.*}" "k8s.io/kubernetes/cmd/$command"
        mv "$work/bin/$command" "$bin/$command"
    done
}

install_program helm3 "helm.sh/helm/v3/cmd/helm@v$HELM3"
install_program helm4 "helm.sh/helm/v4/cmd/helm@v$HELM4"
install_program kwok "sigs.k8s.io/kwok/cmd/kwok@v$KWOK"
(build_kubernetes)
echo "$bin"
