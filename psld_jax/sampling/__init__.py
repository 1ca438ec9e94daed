"""From a table to samples: the loop on the device, adaptive solvers, settings, generation, files, programs."""
