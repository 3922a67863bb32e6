"""Writes the operator table that ships with the client: `python server/generate_operators.py [FILE]`.

The table is read from the installed torch's dispatcher. Its `torch` key says which release that was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from gradoracle_server.engine import operators

TABLE = Path(__file__).resolve().parent.parent / "client" / "gradoracle" / "operators.json"


def text() -> str:
    """The table as JSON, one operator a line, so that a new torch release shows as a readable diff."""
    served, refused = [], []
    for row in operators.table():
        name = json.dumps(row["name"])
        if row["refused"]:
            refused.append(f"  {name}: {json.dumps(row['refused'])}")
        else:
            kept = {key: row[key] for key in ("schema", "differentiable", "random", "numbers")}
            served.append(f"  {name}: {json.dumps(kept)}")
    release = json.dumps(torch.__version__.partition("+")[0])
    first, second = ",\n".join(served), ",\n".join(refused)
    return f'{{"torch": {release},\n "operators": {{\n{first}\n }},\n "refused": {{\n{second}\n }}}}\n'


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE).write_text(text(), encoding="utf-8")
