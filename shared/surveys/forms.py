"""The schemas of surveys under their former path; import them from `shared.schemas`."""

from shared.schemas import (
    MOST_KERNELS,
    SHOWN,
    Bin,
    ExplainKernels,
    Explanation,
    KernelPage,
    KernelSummary,
    LayerKernels,
    NewSurvey,
    Score,
    Similar,
    Survey,
    TopImage,
)

__all__ = [
    "MOST_KERNELS",
    "SHOWN",
    "Bin",
    "ExplainKernels",
    "Explanation",
    "KernelPage",
    "KernelSummary",
    "LayerKernels",
    "NewSurvey",
    "Score",
    "Similar",
    "Survey",
    "TopImage",
]
