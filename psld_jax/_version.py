"""The version. Packaging and everything else read it from here."""

__version__ = "0.2.0"
