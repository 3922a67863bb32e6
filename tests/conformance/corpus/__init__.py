"""The corpus of planted faults: operators at smooth points, wrong backwards for them, and those who judge them."""
