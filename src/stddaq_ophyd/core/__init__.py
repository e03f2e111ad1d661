"""What a detector device is made of, free of any framework: runs, points, published images, documents.

Nothing in here imports ophyd, ophyd_async or bluesky, so that devices of either kind can stand on it.
"""
