"""What a distilled student learned: likeness to its teacher, living channels, steadiness under weight noise."""
