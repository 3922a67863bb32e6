"""Puts the shards' results into one file, and lets `gradoracle batch` report on it.

Cases that no shard has finished are run now, so that the report is of all of them. The exit code is that command's.
"""

import os
import sys
from pathlib import Path


def main(cases: str, folder: Path) -> None:
    """Merges `folder`/shard-*.jsonl, and becomes the command that writes the reports beside them."""
    merged = folder / "all.jsonl"
    draft = folder / "all.jsonl.draft"
    with draft.open("wb") as out:
        for shard in sorted(folder.glob("shard-*.jsonl")):
            with shard.open("rb") as lines:
                # What a killed pod left of a line has no end.
                out.writelines(line for line in lines if line.endswith(b"\n"))
    draft.replace(merged)
    reports = [f"--report={folder}/report.html", f"--junit={folder}/junit.xml", f"--json-summary={folder}/summary.json"]
    os.execvp("gradoracle", ["gradoracle", "batch", cases, f"--out={merged}", "--resume", *reports])  # noqa: S606, S607


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
