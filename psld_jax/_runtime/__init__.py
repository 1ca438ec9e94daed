"""What everything stands on and no user calls: XLA, devices, processes, random keys, files, errors."""
