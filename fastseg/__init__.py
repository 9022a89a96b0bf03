"""Instance segmentation kernels and models: fast, exact, easy to install."""

__version__ = "0.1.0"
