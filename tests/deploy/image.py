"""The image, built here with buildah on a base of Debian's own packages, and run with podman as the manifests run it.

Needs root, and Debian's buildah, podman, runc and mmdebstrap; takes minutes and some gigabytes below the temporary
folder, which are given back at the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.manifests import DEPLOY, NO_KUBECTL, ROOT, containers, environment, named, pod, rendered

_TOOLS = ("buildah", "podman", "runc", "mmdebstrap")
_MISSING = [tool for tool in _TOOLS if not shutil.which(tool)]
_SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}  # the wheels are those of the Python that runs this

pytestmark = [
    pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL),
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed here (apt-get install them): {', '.join(_MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a base image and run containers"),
    pytest.mark.skipif(sys.version_info[:2] not in _SUITES, reason="no release of Debian has this version of Python"),
    pytest.mark.timeout(1800),
]


class Store:
    """Images and containers, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where = ["--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]

    def call(self, tool: str, *arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
        """Runs buildah or podman; the caller looks at the exit code."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [tool, *self._where, *arguments], capture_output=True, text=True, **kwargs
        )
        return done

    def base(self) -> None:
        """An image with Debian's Python, from its packages."""
        archive = str(self.folder / "base.tar")
        packages = "--include=python3,python3-venv,ca-certificates"
        suite = _SUITES[sys.version_info[:2]]
        command = ["mmdebstrap", "--quiet", "--variant=minbase", packages, suite, archive]
        subprocess.run(command, check=True)
        assert 0 == self.call("podman", "import", archive, "localhost/python:local").returncode
        Path(archive).unlink()

    def build(self, target: str) -> subprocess.CompletedProcess[str]:
        """Builds a target. pip takes wheels that were fetched before, by the configuration that the secret gives it."""
        wheels = self.folder / "wheels"
        if not wheels.exists():
            [extras] = re.findall(r'install .*"\.\[(.+)\]"', (DEPLOY / "Dockerfile").read_text())
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"),
                    *("-d", str(wheels), "-c", str(ROOT / "constraints.txt"), f"{ROOT}[{extras}]", "hatchling"),
                ],
                check=True,
                cwd=self.folder,
            )
            (self.folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        return self.call(
            *("buildah", "bud", "--isolation", "chroot", "--network", "host", "--pull-never"),
            *("--ignorefile", str(DEPLOY / "Dockerfile.dockerignore"), "-f", str(DEPLOY / "Dockerfile")),
            *("--build-arg", "PYTHON_IMAGE=localhost/python:local", "--build-arg", "TORCH_INDEX="),
            *("--secret", f"id=pip.conf,src={self.folder}/pip.conf", "-v", f"{wheels}:/wheels:ro"),
            *("--target", target, "-t", f"localhost/gradoracle:{target}", str(ROOT)),
        )

    def run(self, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Runs the image's command line as the pods do: read-only, without capabilities, /tmp to write."""
        spec = pod(named(rendered("cpu"), "Deployment", "gradoracle"))["securityContext"]
        return self.call(
            *("podman", "--runtime", "runc", "run", "--rm", "--network", "host"),
            *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"),
            *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--user", f"{spec['runAsUser']}:{spec['runAsGroup']}", "--tmpfs", "/tmp:rw,size=256m"),  # noqa: S108
            *options,
            "localhost/gradoracle:cpu",
            *arguments,
            timeout=300,
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the CPU image."""
    folder = tmp_path_factory.mktemp("image")
    made = Store(folder)
    try:
        made.base()
        built = made.build("cpu")
        assert 0 == built.returncode, built.stdout[-3000:] + built.stderr[-3000:]
        yield made
    finally:
        made.call("podman", "rmi", "--all", "--force")
        shutil.rmtree(folder, ignore_errors=True)


def test_the_demo_runs(store: Store) -> None:
    """The demo's ten cases pass in a container that may do nothing but that."""
    done = store.run("demo")
    assert (0, True) == (done.returncode, "10 of 10 cases as expected" in done.stdout), done.stderr


def test_nothing_is_left_of_the_build(store: Store) -> None:
    """No compiler, no pip nor cache of it, no headers, no secret; files are root's, and the user cannot write them."""
    look = (
        "for tool in gcc cc g++ ld pip pip3; do command -v $tool; done; "
        "ls /etc/pip.conf /root/.cache /src 2>/dev/null; find /wheels -type f; "  # the mount's empty folder stays
        "find /opt/gradoracle -name 'pip' -o -name '*.whl' -o -path '*/torch/include' -o -path '*/torch/test'; "
        "find /usr/include -type f 2>/dev/null | head -3; "
        "find /opt/gradoracle ! -user root -o -perm /022 ! -type l | head -3; "
        "touch /opt/gradoracle/x 2>/dev/null && echo written; id -u"
    )
    done = store.run("-c", look, options=("--entrypoint", "sh"))
    assert "10101\n" == done.stdout


def test_size_and_labels(store: Store) -> None:
    """The image has its labels, and its size is what the README says, within a tenth."""
    [image] = json.loads(store.call("podman", "image", "inspect", "localhost/gradoracle:cpu").stdout)
    [base] = json.loads(store.call("podman", "image", "inspect", "localhost/python:local").stdout)
    print(f"\nCPU image: {image['Size'] / 1e6:.0f} MB, of which the base {base['Size'] / 1e6:.0f} MB")
    assert "gradoracle" == image["Labels"]["org.opencontainers.image.title"]
    assert "0.1.0" == image["Labels"]["org.opencontainers.image.version"]
    assert "10101:10101" == image["User"]
    [told] = re.findall(r"CPU image is ([0-9,]+) MB", (DEPLOY / "README.md").read_text())
    assert image["Size"] / 1e6 == pytest.approx(int(told.replace(",", "")), rel=0.1)


def test_a_wrong_value_stops_the_container_with_one_line(store: Store) -> None:
    """A variable with a wrong value: one line that names it, and exit code 2."""
    objects = rendered("cpu")
    told = environment(objects, containers(named(objects, "Deployment", "gradoracle"))[0])
    told["GRADORACLE_DRAIN_TIMEOUT"] = "two minutes"
    options = tuple(part for name, text in told.items() for part in ("--env", f"{name}={text}"))
    done = store.run("serve", options=options)
    expected = 'a number of seconds, or one with a unit like "500ms", "30s", "5m" or "1h"'
    assert f'gradoracle: GRADORACLE_DRAIN_TIMEOUT: expected {expected}, got "two minutes"\n' == done.stderr
    assert 2 == done.returncode


def test_a_cuda_image_without_cuda_is_not_built(store: Store) -> None:
    """The target `cuda` with an index of CPU builds ends with a line that names the argument."""
    done = store.build("cuda")
    assert 0 != done.returncode
    assert "TORCH_INDEX: expected one with CUDA builds" in done.stdout + done.stderr
