"""Runs the server with the workers of fake_worker.py: `python fake_server.py [--fake-workers NAME] [flags]`."""

from __future__ import annotations

import sys

import fake_worker

from gradoracle_server.main import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    target, scout = fake_worker.serve, fake_worker.scout
    if arguments[:1] == ["--fake-workers"]:
        target, scout = {
            "stillborn": (fake_worker.stillborn, fake_worker.scout),
            "late": (fake_worker.late, fake_worker.scout),
            "blind": (fake_worker.serve, fake_worker.blind_scout),
        }[arguments[1]]
        del arguments[:2]
    sys.exit(main(arguments, target=target, scout=scout, preload=fake_worker.MODULE))
