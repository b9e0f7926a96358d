"""forwardsr: hierarchical generative models learned coarse to fine, by forward super-resolution.

After Allen-Zhu and Li, "Forward Super-Resolution: How Can GANs Learn Hierarchical Generative Models for Real-World
Distributions", 2021. The names below are the public API; importing the package imports none of them until they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Pyramid": "forwardsr.data.pyramid",
    "Source": "forwardsr.data.source",
    "open_source": "forwardsr.data.open",
    "LayeredGenerator": "forwardsr.model.protocol",
    "DeconvGenerator": "forwardsr.model.deconv_generator",
    "PatchGenerator": "forwardsr.model.patch_generator",
    "Critic": "forwardsr.model.critic",
    "LearnConfig": "forwardsr.learning",
    "fit": "forwardsr.learning",
    "load_generator": "forwardsr.generators",
    "Run": "forwardsr.run",
    "Reference": "forwardsr.measure.distance",
    "Distance": "forwardsr.measure.distance",
    "write_report": "forwardsr.report.page",
    "UserError": "forwardsr.errors",
}

__all__ = sorted([*_HOMES, "__version__"])

if TYPE_CHECKING:
    from forwardsr.data.open import open_source as open_source
    from forwardsr.data.pyramid import Pyramid as Pyramid
    from forwardsr.data.source import Source as Source
    from forwardsr.errors import UserError as UserError
    from forwardsr.generators import load_generator as load_generator
    from forwardsr.learning import LearnConfig as LearnConfig
    from forwardsr.learning import fit as fit
    from forwardsr.measure.distance import Distance as Distance
    from forwardsr.measure.distance import Reference as Reference
    from forwardsr.model.critic import Critic as Critic
    from forwardsr.model.deconv_generator import DeconvGenerator as DeconvGenerator
    from forwardsr.model.patch_generator import PatchGenerator as PatchGenerator
    from forwardsr.model.protocol import LayeredGenerator as LayeredGenerator
    from forwardsr.report.page import write_report as write_report
    from forwardsr.run import Run as Run


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'forwardsr' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
