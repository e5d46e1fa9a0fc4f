"""The paths, a file for each resource."""
