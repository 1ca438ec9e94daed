"""Drawing samples from a table: the loop on the device, adaptive solvers, settings, generation, files, programs."""
