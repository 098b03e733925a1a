"""Deep Embedded Clustering: learn an embedding and a clustering together.

The method is that of Xie, Girshick and Farhadi, ICML 2016.
"""

from . import callbacks, datasets, functional, metrics
from .autoencoder import Autoencoder
from .cluster import DEC
from .storage import load

__all__ = [
    "DEC",
    "Autoencoder",
    "__version__",
    "callbacks",
    "datasets",
    "functional",
    "load",
    "metrics",
]

__version__ = "0.1.0.dev0"
