"""Difficulty-curated SFT for vision-language models, as a plugin suite for lmms-eval.

The data flow, one module and one ``dcsft`` verb per arrow::

    pool -> rollouts -> labels -> curated set -> adapter -> scores -> leaderboard

Method: Lu et al., "Why Does RL Generalize Better Than SFT?", CVPR 2026, arXiv 2602.10815.
"""

__version__ = "0.1.0"
