"""Judging candidate implementations of an operator against a reference graph.

candidates  a folder of candidates, each run in a process of its own
child       that process: loads one, runs it, gives outputs and gradients
handover    arrays between the two, in a file
outputs     whether a candidate's outputs are near enough to the reference's
judge       outputs and gradients  ->  one record a candidate, and their ranks
"""
