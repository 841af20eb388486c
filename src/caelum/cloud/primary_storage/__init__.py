"""Primary storages: where volumes live, how much fits, and the image cache."""
