"""The stages of the data flow, one file each; `STAGES` has them by verb."""

from pathlib import Path

from dcsft_harness.stages.stage import DONE, Notes, Progress, Registry, Stage

STAGES = Registry(Path(__file__).parent, __name__)
"""Verb -> stage, in the order of the data flow."""

__all__ = ["DONE", "STAGES", "Notes", "Progress", "Registry", "Stage"]
