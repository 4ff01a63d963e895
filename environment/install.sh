#!/bin/sh
# Usage: environment/install.sh VENV
# Makes the virtual environment, or brings it up to date, from environment/lock.txt. Nothing is compiled.
set -eu
cd "$(dirname "$0")/.."
venv=$1

# Prints the Python to use: $PYTHON, else the first usual name that is 3.11 or newer and can make environments.
find_python() {
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.13 python3.12 python3.11 python3; fi
    tried=
    for candidate in "$@"; do
        found=$("$candidate" -c '
import sys
problem = "%d.%d.%d is too old" % sys.version_info[:3] if sys.version_info < (3, 11) else ""
if not problem:
    try:
        import ensurepip, venv
    except ImportError:
        problem = "has no venv module; on Debian and Ubuntu install python3-venv"
print(problem or "good")' 2>/dev/null) || found="not found"
        if [ "$found" = good ]; then echo "$candidate"; return; fi
        tried="$tried${tried:+, }$candidate ($found)"
    done
    echo "vmrepro needs Python 3.11 or newer; tried $tried. Name another with: make PYTHON=/path/to/python" >&2
    return 1
}

# A half-made environment, or one whose Python has gone, has no working pip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "Making $venv with $python; the packages are downloaded once."
    "$python" -m venv --clear "$venv"
fi
# setuptools first and no build isolation, so that the build of this package is pinned like everything else.
"$venv/bin/python" -m pip install --disable-pip-version-check --only-binary :all: -c environment/lock.txt setuptools
"$venv/bin/python" -m pip install --disable-pip-version-check --only-binary :all: -c environment/lock.txt \
    --no-build-isolation -e ".[lab,cpu,peers,test,dev]"
environment/papermill.sh "$venv/bin/python"
