"""The page of a run, which opens from the disk, and the publications to cite."""
