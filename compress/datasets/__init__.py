"""Where images come from: one file for each kind of source, and what is done with any of them."""
