#!/bin/sh
# Make the environment $VENV on the interpreter $PYTHON and install the tested versions into it.
# uv does it in a minute: taken where it is, else fetched with pip; without either, pip and venv do it.
set -eu

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "PYTHON=$PYTHON: is $("$PYTHON" --version 2>&1), llavamed needs 3.11 or newer;" \
        "name another, e.g. make PYTHON=python3.12" >&2
    exit 1
}
uv=$(command -v uv || command -v "$VENV/uv/bin/uv" || true)
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
for python in "$PYTHON" python3; do
    [ -n "$uv" ] && break
    if "$python" -m uv --version >/dev/null 2>&1; then
        uv="$python -m uv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --target "$VENV/uv" uv && uv=$VENV/uv/bin/uv
    fi
done
if [ -n "$uv" ]; then
    # Unquoted: it may be several words.
    $uv venv --quiet --allow-existing --python "$PYTHON" "$VENV"
    exec $uv pip install --quiet --compile-bytecode --python "$VENV/bin/python" \
        --constraint constraints.txt --editable ".[${EXTRAS:-dev,postgres}]"
fi
"$PYTHON" -m venv "$VENV" || {
    echo "$PYTHON -m venv failed: install uv, or your system's python3-venv, and try again" >&2
    exit 1
}
exec "$VENV/bin/pip" install --quiet --constraint constraints.txt --editable ".[${EXTRAS:-dev,postgres}]"
