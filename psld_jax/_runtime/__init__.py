"""Internal services that users do not call: XLA, devices, processes, random keys, files, errors."""
