#!/usr/bin/env python
"""Prints what a container image is made of as JSON, for ``VMREPRO_MANIFEST`` and with it every run's provenance.

The version and commit that the image is labelled with must be those of the source in it; empty ones are not compared.
"""

import argparse
import importlib.metadata
import json
import platform
import sys

import vmrepro
from vmrepro.runs import provenance


def main() -> None:
    """Print the manifest, or say which label is wrong and exit 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("device", "base", "version", "commit"):
        parser.add_argument(f"--{name}", required=True)
    labels = parser.parse_args()
    source = {"version": vmrepro.__version__, **provenance.commit()}
    for name in ("version", "commit"):
        if getattr(labels, name) not in ("", source[name]):
            sys.exit(f"the image is labelled {name} {getattr(labels, name)}, but its source is {name} {source[name]}")
    packages = {package.name.lower(): package.version for package in importlib.metadata.distributions()}
    manifest = {
        **source,
        "base": labels.base,
        "device": labels.device,
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items())),
    }
    print(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
