"""A simulated detector: scenes, and the metadata fields of each detector type."""
