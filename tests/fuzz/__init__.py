"""Random PTX programs, run on two devices and compared; and random text for the loader."""
