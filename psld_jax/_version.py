"""The version, in one place: packaging reads it here, and so does everything else."""

__version__ = "0.2.0"
