"""``python -m psld_jax``, and the command ``psld-jax``: the same as ``python -m psld_jax.main``."""

import runpy


def main() -> None:
    """Run :mod:`psld_jax.main` as the main program, as ``python -m`` does: ``--help`` and flags are of that module."""
    runpy.run_module("psld_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
