"""Faults that are really injected into running servers, and what came of them.

`python tests/faults/run.py` runs all of them at length and writes RESULTS.md; test_short.py runs each for some seconds.
"""
