"""The networks: the paper's patch generator, its deconvolutional counterpart, and their discriminators and critics."""
