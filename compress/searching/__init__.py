"""The parts of the search for a student: candidates, latency table, study, choice."""
