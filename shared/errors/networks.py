"""Errors about networks, layers, kernels and methods.

The docstring of a class is its page at `/problems/<slug>`.
"""

from __future__ import annotations

from shared.errors.base import KernelscopeError


class UnknownModel(KernelscopeError):
    """There is no network with this name. `GET /models` lists them."""

    status = 422
    title = "Unknown model"


class UnknownLayer(KernelscopeError):
    """The network has no such layer, or its kernels cannot be explained."""

    status = 422
    title = "Unknown layer"


class UnknownKernel(KernelscopeError):
    """The layer has no kernel with this index; indices start at zero."""

    status = 422
    title = "Unknown kernel"


class ModelUnavailable(KernelscopeError):
    """The network is known, but no worker has weights for it, or can load them. `detail` says why."""

    status = 422
    title = "Model unavailable"


class LayerNotCovered(KernelscopeError):
    """The weights file contains only a part of the network, which ends below this layer."""

    status = 422
    title = "Layer not covered by the weights"


class SilentKernel(KernelscopeError):
    """The kernel's feature map is zero everywhere on this image, so there is nothing to explain."""

    status = 422
    title = "Silent kernel"


class LoneKernel(KernelscopeError):
    """Every other kernel of the layer is silent on this image, so there is nothing to suppress."""

    status = 422
    title = "Lone kernel"


class MethodNotApplicable(KernelscopeError):
    """A baseline method has no rule for an operation of this network."""

    status = 422
    title = "Method not applicable"


class ModelNotFound(KernelscopeError):
    """There is no network with this name. `GET /models` lists them."""

    status = 404
    title = "Model not found"


class NetworkChanged(KernelscopeError):
    """The network was replaced during a survey or after it, so the results would mix two networks."""

    status = 409
    title = "Network changed"
