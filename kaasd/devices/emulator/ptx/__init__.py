"""PTX: what a text says, with its names resolved, and nothing of how instructions are carried out."""
