from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stddaq.sources.simulated.scenes import (
    MAX_BYTES,
    MAX_PIXELS,
    SCENE_KINDS,
    STAMP_PIXELS,
    Scene,
    SceneKind,
    read_stamp,
)

DTYPES = tuple(np.dtype(name) for name in ("<u1", "<u2", "<u4", "<f4"))
kinds = st.sampled_from(SCENE_KINDS)
shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(kinds, shapes, st.sampled_from(DTYPES), st.integers(0, 2**63), st.integers(0, 2**64 - 1))
def test_scene_is_reproducible(
    kind: SceneKind, shape: tuple[int, int], dtype: np.dtype, seed: int, image_id: int
) -> None:
    image = Scene(kind, shape, dtype, seed).image(image_id)
    assert image.shape == shape
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, Scene(kind, shape, dtype, seed).image(image_id))


@settings(max_examples=10, deadline=None)
@given(kinds, shapes, st.sampled_from(DTYPES), st.integers(0, 2**63))
def test_images_of_one_period_are_all_different(
    kind: SceneKind, shape: tuple[int, int], dtype: np.dtype, first_id: int
) -> None:
    scene = Scene(kind, shape, dtype)
    ids = range(first_id, first_id + scene.n_images)
    assert len({scene.image(image_id).tobytes() for image_id in ids}) == scene.n_images


@settings(max_examples=10, deadline=None)
@given(kinds, shapes, st.sampled_from(DTYPES), st.integers(0, 2**64 - 1))
def test_image_shows_its_id(kind: SceneKind, shape: tuple[int, int], dtype: np.dtype, image_id: int) -> None:
    n_digits = min(STAMP_PIXELS, shape[0] * shape[1])
    assert read_stamp(Scene(kind, shape, dtype).image(image_id)) == image_id % 256**n_digits


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_noise_depends_on_the_seed(kind: SceneKind) -> None:
    first, second = (Scene(kind, (20, 30), np.dtype("<u2"), seed).image(0) for seed in (0, 1))
    assert np.count_nonzero(first != second) > first.size / 2


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scene_moves_by_more_than_its_noise(kind: SceneKind, dtype: np.dtype) -> None:
    scene = Scene(kind, (120, 160), dtype)
    # The mean of 10 x 10 pixels has a tenth of the noise.
    here, next_one, later = (
        scene.image(i).reshape(12, 10, 16, 10).mean(axis=(1, 3)) for i in (0, 1, scene.n_images // 4)
    )
    assert np.abs(later - here).mean() > 3 * np.abs(next_one - here).mean()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_beside_the_phantom_are_poisson_distributed(dtype: np.dtype) -> None:
    scene = Scene("phantom", (100, 200), dtype)
    # The outermost columns are constant in time, because nothing is in the beam there.
    counts = np.stack([scene.image(i)[1:, :8] for i in range(scene.n_images)]).astype(float)
    assert np.mean(counts.var(axis=0) / counts.mean(axis=0)) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_dark_behind_the_beam_stop_and_bright_on_the_first_ring(dtype: np.dtype) -> None:
    image = Scene("rings", (200, 200), dtype).image(0)
    behind_stop = image[100:108, 95:101].mean()
    first_ring = image[104, 98:].max()
    assert behind_stop < 0.02 * first_ring


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("shape", [(3264, 3106), (1, 5000), (5000, 1), (8, 1)])
def test_large_and_narrow_scenes_stay_within_their_memory(kind: SceneKind, shape: tuple[int, int]) -> None:
    scene = Scene(kind, shape, np.dtype("<u4"))
    pixels = scene.n_images * shape[0] * shape[1]
    assert scene.n_images >= 1
    assert pixels <= MAX_PIXELS
    assert pixels * 4 <= MAX_BYTES
    assert read_stamp(scene.image(2**40 + 5)) == 2**40 + 5
