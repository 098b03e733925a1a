"""Commands that measure the library, and what they measured (see README.md here)."""
