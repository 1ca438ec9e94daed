"""What lies where a large file should be: nothing, or what Git LFS leaves there until the file is fetched."""

from __future__ import annotations

from io import BufferedReader

_LFS = b"version https://git-lfs"


def check_fetched(file: BufferedReader) -> None:
    """Raise a ``ValueError`` for a file that is empty, or a pointer of Git LFS; ``file`` stays at its start."""
    head = file.peek(len(_LFS))
    if head.startswith(_LFS):
        raise ValueError("it is a pointer of Git LFS, not the file itself: fetch that with git lfs pull")
    if not head:
        raise ValueError("it is empty")
