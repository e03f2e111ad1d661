"""Blobs of other libraries and versions are decoded; incomplete blobs are refused."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import bitshuffle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.peers import c_blosc2

from stddaq.errors import CompressionError
from stddaq.wire.blosc2_chunk import ChunkCompressor, FrameMaker, decompress_chunk_into
from stddaq.wire.bsread import Channel, decode_value
from stddaq.wire.compression import (
    check_bitshuffle_lz4,
    compress_bitshuffle_lz4,
    compress_lz4,
    decompress_bitshuffle_lz4,
    decompress_lz4_into,
)

DTYPES = ("u1", "<u2", "<u4", "<f4")
images = st.builds(
    lambda seed, dtype, height, width: np.random.default_rng(seed).poisson(9, (height, width)).astype(dtype),
    st.integers(0, 2**32),
    st.sampled_from(DTYPES),
    st.integers(1, 40),
    st.integers(1, 40),
)


@given(image=images, block=st.sampled_from([0, 8, 16, 128, 1024]))
def test_every_proper_prefix_of_a_bitshuffle_blob_is_refused(image: np.ndarray, block: int):
    blob = bytes(compress_bitshuffle_lz4(image, block * image.itemsize))
    np.testing.assert_array_equal(decompress_bitshuffle_lz4(blob, image.shape, image.dtype), image)
    for end in range(len(blob)):
        with pytest.raises(CompressionError):
            check_bitshuffle_lz4(blob[:end], image.nbytes, image.itemsize)


@given(image=images)
def test_every_proper_prefix_of_a_blosc2_chunk_is_refused(image: np.ndarray):
    chunk = ChunkCompressor(image.itemsize, 5).compress(image)
    decoded = np.empty_like(image)
    decompress_chunk_into(chunk, decoded)
    np.testing.assert_array_equal(decoded, image)
    for end in range(len(chunk)):
        with pytest.raises(CompressionError):
            decompress_chunk_into(chunk[:end], decoded)


def test_decoding_damaged_blobs_touches_no_memory_next_to_them():
    # Run in a process of its own, which a mistake would end with SIGSEGV.
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "support.tools.guarded_decoding"]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    n_refused, n_decoded = map(int, done.stdout.split())
    assert n_refused > n_decoded > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_block_size_0_is_the_default_of_the_library(dtype: str):
    image = np.random.default_rng(3).poisson(9, (120, 130)).astype(dtype)
    blob = struct.pack(">qi", image.nbytes, 0) + bitshuffle.compress_lz4(image).tobytes()
    np.testing.assert_array_equal(decompress_bitshuffle_lz4(blob, image.shape, image.dtype), image)
    channel = Channel.of_image("camera", (120, 130), np.dtype(dtype), "bitshuffle_lz4")
    np.testing.assert_array_equal(decode_value(channel, blob, image.nbytes), image)


@pytest.mark.parametrize("codec", [b"blosclz", b"lz4", b"lz4hc", b"zlib", b"zstd"])
@pytest.mark.parametrize("shuffle", [0, 1, 2])
def test_blosc2_chunks_of_every_codec_are_decoded(codec: bytes, shuffle: int):
    image = np.random.default_rng(3).poisson(9, (61, 53)).astype("<u2")
    decoded = np.empty_like(image)
    decompress_chunk_into(c_blosc2.compress(image, 5, codec, shuffle), decoded)
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (b"", "Blosc2 chunk: expected 16 bytes of header, got 0"),
        (b"\x9e\xa8b2frame\x00" + bytes(90), "Blosc2 chunk: expected 60 bytes of data, got"),
        (struct.pack("<4B3i", 5, 1, 0x35, 2, 60, 60, 99), "expected the 16 bytes announced for it, got 99"),
    ],
)
def test_bytes_that_are_not_a_blosc2_chunk_are_refused_with_the_reason(chunk: bytes, reason: str):
    with pytest.raises(CompressionError, match=reason):
        FrameMaker(60, 2).frame(chunk)


def test_lz4_blob_that_ends_early_is_refused():
    image = np.random.default_rng(3).poisson(9, (61, 53)).astype("<u2")
    blob = bytes(compress_lz4(image))
    for end in range(len(blob)):
        with pytest.raises(CompressionError):
            decompress_lz4_into(blob[:end], np.empty_like(image))


def test_channel_without_a_name_is_decoded():
    image = np.arange(12, dtype="<u2").reshape(3, 4)
    channel = Channel.of_image("", (3, 4), image.dtype)
    np.testing.assert_array_equal(decode_value(channel, image.tobytes(), image.nbytes), image)
