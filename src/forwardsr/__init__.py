"""forwardsr: learn hierarchical generative models coarse to fine, by forward super-resolution (Allen-Zhu and Li, 2021)."""

__version__ = "0.1.0"
