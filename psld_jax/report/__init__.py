"""What a run leaves to be read: one page that opens from the disk, and whom to cite."""
