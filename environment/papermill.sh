#!/bin/sh
# Usage: environment/papermill.sh PYTHON [FOLDER]
# Writes the project's `papermill` beside that Python, or into FOLDER: `papermill x.ipynb` alone works, parameters are
# checked, no source notebook is written. It is not an entry point of the package, so that installing vmrepro into
# another environment leaves the papermill there as it is. The stock command stays: python -m papermill.
set -eu
python=$("$1" -c 'import sys; print(sys.executable)')
launcher=${2:-$(dirname "$python")}/papermill
rm -f "$launcher"  # never through a link
cat > "$launcher" <<LAUNCHER
#!/bin/sh
exec "$python" -P -c 'from vmrepro.notebooks import papermill_main; papermill_main()' "\$@"
LAUNCHER
chmod 755 "$launcher"
