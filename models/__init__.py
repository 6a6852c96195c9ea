"""What a network is: names and aliases, taps, artefacts on disk, preprocessing."""
