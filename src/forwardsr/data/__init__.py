"""Where pyramids come from: planted targets, arrays on disk, image folders and zips, named data sets."""
