"""From a trained network to a measured file on the target: export, backends, benchmark, report."""
