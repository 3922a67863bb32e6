"""Sweeps: cases that check operators over shapes, dtypes, devices and layouts.

recipes     sample arguments of operators, from `corpus/recipes.txt` and from schemas
tensors     a tensor of a recipe  ->  an array of a case
build       an operator and its arguments  ->  a case
"""

from __future__ import annotations

from gradoracle.sweep.build import Sweep as Sweep
from gradoracle.sweep.build import cases as cases
