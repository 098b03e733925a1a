"""The methods, one file each."""

from .dec import DEC

__all__ = ["DEC"]
