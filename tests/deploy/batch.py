"""The batch Job without a cluster: its shards and its merge step, run as processes, as the manifests say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.manifests import DEPLOY, NO_KUBECTL, Object, containers, environment, named, rendered

pytestmark = [pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL), pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent


def run(job: Object, objects: list[Object], folder: Path, index: int | None = None) -> int:
    """Runs the container of a Job with its volumes in `folder`; returns the exit code."""
    [container] = containers(job)
    told = environment(objects, container) | ({} if index is None else {"JOB_COMPLETION_INDEX": str(index)})
    inherited = {key: text for key, text in os.environ.items() if not key.startswith(("GRADORACLE_", "JOB_"))}
    inherited["PATH"] = f"{BIN}{os.pathsep}{inherited['PATH']}"
    command = [*container.get("command", ["gradoracle"]), *container.get("args", [])]
    command = [re.sub(r"(^|=)/(cases|results)\b", rf"\1{folder}/\2", part) for part in command]
    done = subprocess.run(command, env=inherited | told, capture_output=True, text=True, timeout=300)
    print(done.stdout[-500:], done.stderr[-500:])
    return done.returncode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The Job's volumes."""
    data = next(one for one in rendered("batch") if one["kind"] == "ConfigMap")["data"]
    for name in ("cases", "results"):
        (tmp_path / name).mkdir()
    for name, text in data.items():
        (tmp_path / "cases" / name).write_text(text)
    assert (DEPLOY / "overlays/batch/cases.jsonl").read_text() == data["cases.jsonl"]
    return tmp_path


def ids(path: Path) -> list[str]:
    """The ids of a file of results or cases."""
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_shards_and_merge(folder: Path) -> None:
    """Four shards and the merge step: every case once, and one report of all."""
    objects = rendered("batch")
    job = named(objects, "Job", "gradoracle-batch")
    assert [0] * 4 == [run(job, objects, folder, index) for index in range(job["spec"]["completions"])]
    assert 0 == run(named(objects, "Job", "gradoracle-batch-merge"), objects, folder)

    wanted = sorted(ids(folder / "cases/cases.jsonl"))
    assert wanted == sorted(ids(folder / "results/all.jsonl"))
    page = (folder / "results/report.html").read_text()
    assert [] == [name for name in wanted if name not in page]
    assert len(wanted) == (folder / "results/junit.xml").read_text().count("<testcase ")


def test_a_wrong_gradient_fails_its_index_alone_and_the_merge(folder: Path) -> None:
    """A wrong claim ends its shard and the merge with 1, which the Jobs do not try again; the other shards end well."""
    objects = rendered("batch")
    cases = folder / "cases/cases.jsonl"
    cases.write_text(cases.read_text().replace("[3.0, 12.0, 27.0]", "[3.0, 12.0, 27.5]"))
    job = named(objects, "Job", "gradoracle-batch")
    codes = [run(job, objects, folder, index) for index in range(job["spec"]["completions"])]
    assert [0, 0, 0, 1] == sorted(codes)
    assert 1 == run(named(objects, "Job", "gradoracle-batch-merge"), objects, folder)
    for one in ("gradoracle-batch", "gradoracle-batch-merge"):
        rule = named(objects, "Job", one)["spec"]["podFailurePolicy"]["rules"][1]
        assert 1 in rule["onExitCodes"]["values"]


def test_what_a_shard_lacks_is_run_by_the_merge(folder: Path) -> None:
    """A shard that never ran, and one that was killed in the middle of a line, are missing in no report."""
    objects = rendered("batch")
    job = named(objects, "Job", "gradoracle-batch")
    assert [0, 0] == [run(job, objects, folder, index) for index in (0, 1)]
    with (folder / "results/shard-1.jsonl").open("a") as torn:
        torn.write('{"id": "torn", "line": 7, "inp')
    assert 0 == run(named(objects, "Job", "gradoracle-batch-merge"), objects, folder)
    assert sorted(ids(folder / "cases/cases.jsonl")) == sorted(ids(folder / "results/all.jsonl"))
