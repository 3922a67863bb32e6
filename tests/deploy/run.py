"""The long checks of deploy/: `python tests/deploy/run.py [NAME…]`, all of them where none is named.

    alerts      promtool's unit tests of every alert, and the tests of those (needs Debian's prometheus)
    dashboard   every query, by a real Prometheus that scrapes a loaded server (needs Debian's prometheus)
    batch       the batch Job's shards and its merge step, as processes
    rehearsal   three servers rolled and one killed behind a load balancer under load (needs Debian's haproxy)
    headless    the headless Service's name: calls go round, new pods are found, a rollout loses none
    security    checkov over every overlay and the Dockerfile (installs it into a temporary environment)
    image       the image built and run (needs root, and Debian's buildah, podman, runc and mmdebstrap)

All need kubectl. What is not installed is skipped, and named at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

NAMES = ("alerts", "dashboard", "batch", "rehearsal", "headless", "security", "image")


def main(names: list[str]) -> int:
    """Runs the checks of these names."""
    if unknown := sorted(set(names) - set(NAMES)):
        print(f"{unknown[0]}: expected one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    folder = Path(__file__).parent
    files = [str(folder / f"{name}.py") for name in names or NAMES]
    return int(pytest.main(["-s", "-v", "-p", "no:cacheprovider", f"--rootdir={folder.parents[1]}", *files]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
