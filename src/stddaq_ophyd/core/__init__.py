"""The framework-free parts of a detector device: driver runs, images that are ready, their publication.

Nothing here imports ophyd, ophyd-async or bluesky, so that devices of both kinds can stand on it.
"""
