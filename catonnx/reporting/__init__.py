"""What `optimize` told, to look at: one HTML page, and its pictures for papers."""
