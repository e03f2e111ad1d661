"""A simulated detector: scenes, and the fields that each detector type adds to its metadata."""
