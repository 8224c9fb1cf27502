"""The method of Zhuang et al.: an image X̂ that keeps kernel i's feature map, silences the others and is else empty.

Pure torch over a batch of independent problems: no Celery, no Redis, no files, no settings.

    problems.py    what is to be solved: a batch of (image, kernel, α, β) with their targets
    objective.py   the loss L = L_p + α·L_s + β·L_r and its gradient, per problem
    taps.py        what X̂ invents below the layer, L_e; pulls.py: how it is pulled down
    likeness.py    SSIM of feature maps
    fast.py        the default solver, a preconditioned primal-dual method, made of
      multiplier.py, gates.py    the dual variables y and u
      steps.py                   momentum, step length, shrinking, box
      schedule.py, descents.py   when a descent begins and ends, and when another is worth it
      rounding.py, bounds.py     the 8-bit picture; bounds to be kept
    reference.py   the paper's procedure: momentum SGD
    loop.py        a batch of problems that come and go: step after step until each has converged or been stopped
"""

from worker.methods.suppression.fast import FastSolver
from worker.methods.suppression.loop import Batch, Solution, Solver, after, solve
from worker.methods.suppression.objective import Losses, losses
from worker.methods.suppression.problems import PixelSpace, Problems, silent
from worker.methods.suppression.reference import ReferenceSolver
from worker.methods.suppression.schedule import EFFORTS, Schedule
from worker.methods.suppression.taps import Bounds, Watched

VERSION = 4  # of what the solvers find: to be raised whenever the same problem would get another X̂

__all__ = [
    "EFFORTS",
    "VERSION",
    "Batch",
    "Bounds",
    "FastSolver",
    "Losses",
    "PixelSpace",
    "Problems",
    "ReferenceSolver",
    "Schedule",
    "Solution",
    "Solver",
    "Watched",
    "after",
    "losses",
    "silent",
    "solve",
]
