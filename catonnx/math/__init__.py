"""The mathematics of concentration-alignment transforms: numpy and scipy only, no graph, no files."""
