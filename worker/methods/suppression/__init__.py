"""The method of Zhuang et al. (2021): an image X̂ that keeps one kernel's feature map, and otherwise is empty.

Pure torch on a batch of independent problems: no Celery, no Redis, no files, no settings.

    problem_batch.py   what is solved: a batch of (image, kernel, α, β) with their target maps
    pixel_space.py     the network's normalised space, and its displayable box
    objective.py       the loss L = L_p + α·L_s + β·L_r and its gradient, per problem
    taps.py            L_e: activation below the layer that X̂ causes and X does not; hinge.py: its gradient
    ssim.py            SSIM of feature maps
    fast.py            the default solver, a preconditioned primal-dual method, which consists of
      multiplier.py, gates.py    the dual variables y and u
      steps.py                   the primal step: momentum, step sizes, soft threshold, box
      schedule.py, descents.py   when a descent starts and ends, and whether another one follows
      rounding.py                evaluation at the 8-bit picture
      constraints.py             upper bounds on L_p and L_e, lower bounds on SSIM
    reference.py       the paper's procedure: SGD with momentum
    loop.py            the iteration over a batch that problems join and leave
    solve.py           the same for a batch that is solved at once
"""

from worker.methods.suppression.fast import FastSolver
from worker.methods.suppression.loop import Solution, Solver, SolverBatch
from worker.methods.suppression.objective import BatchLosses, losses
from worker.methods.suppression.pixel_space import PixelSpace
from worker.methods.suppression.problem_batch import Problems, for_float64, silent
from worker.methods.suppression.reference import ReferenceSolver
from worker.methods.suppression.schedule import EFFORTS, Schedule
from worker.methods.suppression.solve import after, solve
from worker.methods.suppression.taps import ActivationBounds, TappedNetwork

VERSION = 4  # of the solvers' results: raise it whenever the same problem would get another X̂

__all__ = [
    "EFFORTS",
    "VERSION",
    "ActivationBounds",
    "BatchLosses",
    "FastSolver",
    "PixelSpace",
    "Problems",
    "ReferenceSolver",
    "Schedule",
    "Solution",
    "Solver",
    "SolverBatch",
    "TappedNetwork",
    "after",
    "for_float64",
    "losses",
    "silent",
    "solve",
]
