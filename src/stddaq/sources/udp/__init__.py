"""A simulated detector that sends UDP packets."""
