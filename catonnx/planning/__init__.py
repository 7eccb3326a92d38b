"""Choose what is done at every site: transform, ranges, bits. Predict what that is worth, and keep it in a file."""
