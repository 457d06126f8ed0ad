"""Records and images for data layers."""
