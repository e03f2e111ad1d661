"""The counters and gauges of a daemon, under the names that a monitoring system reads.

A loop counts in plain attributes (`self.n_sent += 1`); the daemon's one `Registry` reads them when a value is
wanted. Counters start at 0 and never decrease. The statistics line prints differences of what is read here
(see `stddaq.daemon.statistics`), and the daemon's metrics page holds the values (see
`stddaq.daemon.metrics_page`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stddaq.text import mismatch


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table below. Each metric also has the labels of its registry.

    Attributes:
        is_loss: it counts what was to be recorded or shown and was not.
    """

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str
    is_loss: bool = False


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"stddaq_{name}_total", "counter", labels, help)


def _loss(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"stddaq_{name}_total", "counter", labels, help, is_loss=True)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"stddaq_{name}", "gauge", labels, help)


# Every service, by `stddaq-rest` from the metrics pages and from /proc.
SERVICE_UP = _gauge("service_up", "1 while the service writes its metrics page, else 0.")
SERVICE_WANTED = _gauge("service_wanted", "1 if the service should run, else 0.")
SERVICE_HEARTBEAT_AGE = _gauge(
    "service_heartbeat_age_seconds", "Time since the main loop of the service has written its page."
)
SERVICE_START_TIME = _gauge("service_start_time_seconds", "Start of the service, since 1970.")
SERVICE_INFO = _gauge(
    "service_info",
    "Always 1; `config_etag` is of the configuration that the service has read at its start.",
    "version",
    "config_etag",
)
PROCESS_CPU_SECONDS = _counter("process_cpu_seconds", "CPU time of the process.")
PROCESS_MEMORY = _gauge("process_memory_anonymous_bytes", "Memory of the process without its ring buffers.")
PROCESS_DESCRIPTORS = _gauge("process_open_descriptors", "Open descriptors of the process.")
PAGES_REJECTED = _counter("metrics_pages_rejected", "Readings of a metrics page that is not valid.")

MESSAGES_LOGGED = _counter("messages_logged", "Warnings and errors in the log.", "level")

# `stddaq up`. `stddaq-rest` makes `service` and `instance_id` of these labels.
WANTED = _gauge("wanted", "1 if `stddaq up` keeps the service running, else 0.", "of_service", "of_id")
SERVICE_RESTARTS = _counter("service_restarts", "Restarts after a crash.", "of_service", "of_id")
CONFIGURATION_VALID = _gauge("configuration_valid", "1 if the configuration file is valid, else 0.")
CONFIGURATION_CHANGES = _counter("configuration_changes", "Changes of the configuration file applied.")

# `stddaq-rest`.
HTTP_REQUESTS = _counter(
    "http_requests", "Requests answered, by their method and the class of the status.", "method", "status"
)
RING_SLOTS = _gauge("ring_slots", "Images that a ring buffer holds.")
RING_UNRESERVED_BYTES = _gauge(
    "ring_unreserved_bytes",
    "Memory that the ring buffers of the detector still need; 0 unless C++ made them.",
)
SHARED_MEMORY_FREE_BYTES = _gauge("shared_memory_free_bytes", "Free shared memory.")
DISK_FREE_BYTES = _gauge("disk_free_bytes", "Free space for users at a root of files.", "path")
DISK_SIZE_BYTES = _gauge("disk_size_bytes", "Size of the file system of a root.", "path")

# Sources.
IMAGES_PUBLISHED = _counter("images_published", "Images published.", "source")
IMAGE_BYTES_PUBLISHED = _counter("image_bytes_published", "Bytes of the published images.", "source")
SOURCE_IMAGES_BEHIND = _loss("source_images_behind", "Images not published because the source was too slow.")
IDS_RESTARTED = _counter("ids_restarted", "Restarts of the image ids.")

# The camera receiver.
CAMERA_IMAGES_LEFT_OUT = _loss("camera_images_left_out", "Image ids of the camera not published.", "reason")
CAMERA_CONNECTIONS = _gauge("camera_connections", "Connections to the camera server.")

# Converters and the module synchroniser.
PIXELS_WITHOUT_VALUE = _counter(
    "pixels_without_value", "Pixels of a Jungfrau that could not be converted.", "reason"
)
MODULE_FRAMES = _counter("module_frames", "Frames of modules that the synchroniser has received.")
MODULE_FRAMES_LOST = _loss("module_frames_lost", "Frames that incomplete images lacked.", "module")
MODULE_FRAMES_IGNORED = _counter(
    "module_frames_ignored", "Frames that were late, or repeated, for their image.", "reason"
)
MODULE_FRAMES_DOUBTFUL = _counter(
    "module_frames_doubtful",
    "Frames that may be of another acquisition than the others of their images, which are not good.",
)
IMAGES_INCOMPLETE = _loss("images_incomplete", "Images that lack a module, or a part of another server.")
IMAGES_WAITING = _gauge(
    "images_waiting", "Images that wait for the rest, for the image before them, or to be announced."
)

# Receivers of UDP packets.
PACKETS_RECEIVED = _counter("packets_received", "Valid packets received.")
PACKETS_MISSING = _loss("packets_missing", "Packets that the announced frames lack.")
PACKETS_REJECTED = _loss(
    "packets_rejected", "Datagrams that are no packets of the module, late or repeated.", "reason"
)
PACKETS_DROPPED = _loss("packets_dropped", "Datagrams dropped by the kernel: the socket's buffer was full.")
RECEIVE_CALLS = _counter("receive_calls", "System calls that returned datagrams.")
FRAMES_ANNOUNCED = _counter("frames_announced", "Frames announced to the converter.")
FRAMES_CORRUPTED = _loss("frames_corrupted", "Announced frames that lack packets.")

# Forwarding between servers.
PARTS_SENT = _counter("parts_sent", "Parts of images sent to another server.")
PARTS_RECEIVED = _counter("parts_received", "Parts of images received from another server.")
PARTS_LOST = _loss("parts_lost", "Parts that the sender had to send and this receiver did not receive.")
PARTS_UNWANTED = _counter("parts_unwanted", "Parts not passed on because nothing was connected.")
PARTS_IGNORED = _counter(
    "parts_ignored",
    "Parts that were late, or repeated, for their image, or may belong to either of two images.",
    "reason",
)
IMAGES_NOT_RECEIVED = _loss(
    "images_not_received", "Images of the first server of which nothing arrived on the second."
)
SERVER_CONNECTIONS = _gauge("server_connections", "Connections to the other server.")

# Every subscriber of a metadata stream, and the camera receiver for images and rejected messages.
IMAGES_RECEIVED = _counter("images_received", "Images received.", "source")
MESSAGES_LOST = _loss(
    "messages_lost", "Messages that the source sent and this service did not receive.", "source"
)
IDS_SKIPPED = _loss("ids_skipped", "Image ids that never arrived between two that did.", "source")
MESSAGES_REJECTED = _loss(
    "messages_rejected", "Messages that do not describe an image of the detector.", "reason"
)

# Every reader of a ring buffer.
IMAGES_OVERWRITTEN = _loss(
    "images_overwritten", "Images whose slots were reused before they were copied.", "source"
)
IMAGES_FAILED = _loss("images_failed", "Images that could not be written, sent or processed.", "source")

RING_LAG_IMAGES = _gauge("ring_lag_images", "Images by which the source is ahead of the service.")
RING_LAG_RATIO = _gauge(
    "ring_lag_ratio", "The same as a part of the ring buffer; at 1 images are overwritten."
)

# Processing services.
IMAGES_PROCESSED = _counter(
    "images_processed", "Images processed, overwritten and failed ones included.", "source"
)
IMAGES_UNCOMPRESSED = _counter("images_uncompressed", "Images that compression did not make smaller.")
COMPRESSED_BYTES = _counter("compressed_bytes", "Bytes of the images after compression.")
UNCOMPRESSED_BYTES = _counter("uncompressed_bytes", "Bytes of the same images before compression.")
IMAGES_PASSED = _counter("images_passed", "Images that the filter has forwarded.")

# The driver.
CLIENTS_CONNECTED = _gauge("clients_connected", "Clients connected to the driver.")
COMMANDS_REFUSED = _counter("commands_refused", "Commands of clients refused.", "error")
RUN_ACTIVE = _gauge("run_active", "1 during a run, else 0.")
RUN_STATE = _gauge("run_state", "1 for the state that clients see, else 0.", "state")
RUNS_FINISHED = _counter("runs_finished", "Runs that have ended.", "outcome")
IMAGES_DAMAGED = _loss("images_damaged", "Recorded images that the source calls damaged.")
IMAGES_FORWARDED = _counter("images_forwarded", "Images of runs forwarded to a writer.", "writer")

# Writers.
IMAGES_WRITTEN = _counter("images_written", "Images written.", "source")
IMAGE_BYTES_WRITTEN = _counter(
    "image_bytes_written", "Bytes of the written images before compression.", "source"
)
IMAGE_WRITE_SECONDS = _counter("image_write_seconds", "Time spent writing images.")
IMAGE_WRITE_LONGEST_SECONDS = _gauge(
    "image_write_longest_seconds", "Longest time per image in this statistics period and the last."
)

# The writer of the image buffer.
IMAGES_ANNOUNCED = _counter("images_announced", "Stored images announced in the database.")
IMAGES_REPLACED = _counter("images_replaced", "Stored images replaced by newer ones of the same id.")
IMAGES_NOT_STORED = _loss(
    "images_not_stored",
    "Images that the image buffer does not have, overwritten ones not included.",
    "reason",
)

# The reader and the driver of the image buffer.
IMAGES_EXPIRED = _counter("images_expired", "Ids of replays whose images have expired.")
IMAGES_UNREADABLE = _loss("images_unreadable", "Stored images whose bytes are not theirs.")
IMAGES_REPLAYED = _counter("images_replayed", "Images of replays sent to a consumer.")
REPLAY_ACTIVE = _gauge("replay_active", "1 during a replay, else 0.")

# Live streams.
IMAGES_SENT = _counter("images_sent", "Images sent to at least one viewer.", "type")
VIEWER_IMAGES_DROPPED = _loss(
    "viewer_images_dropped", "Images not sent to a slow viewer, for each viewer.", "type"
)
VIEWERS_CONNECTED = _gauge("viewers_connected", "Viewers that have subscribed.", "type")

# Browsers that show live images, of `stddaq-rest`.
BROWSERS_CONNECTED = _gauge("browsers_connected", "Browsers that show live images.")
BROWSER_IMAGES_SENT = _counter("browser_images_sent", "Images sent to browsers, for each browser.")
BROWSER_IMAGES_SKIPPED = _counter(
    "browser_images_skipped", "Images replaced by newer ones before the browser was ready, for each browser."
)

# The preview service.
PREVIEWS_ENCODED = _counter("previews_encoded", "Images reduced and encoded for browsers.", "codec")
PREVIEW_ENCODE_SECONDS = _counter("preview_encode_seconds", "Time spent reducing and encoding.", "codec")


# By name.
TABLE: Mapping[str, Metric] = {
    metric.name: metric for metric in list(globals().values()) if isinstance(metric, Metric)
}


class Series(NamedTuple):
    """A metric with the values of its labels, in the order of `metric.labels`."""

    metric: Metric
    labels: tuple[str, ...]


Values = Mapping[Series, float]


class Registry:
    """All metrics of one daemon.

    Attributes:
        labels: labels of all its metrics: `detector`, `service` and `instance_id`.
    """

    def __init__(self, detector: str, service: str, instance_id: str = "") -> None:
        """`instance_id` distinguishes services of one program: a writer's number, a live stream's port."""
        self.labels = {"detector": detector, "service": service, "instance_id": instance_id}
        self._series: dict[Series, Callable[[], float]] = {}

    def add(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Publish what `read` returns as `metric`.

        Raise `ValueError` unless `labels` are those of the metric, and for a series that exists already.
        """
        if tuple(sorted(labels)) != tuple(sorted(metric.labels)):
            raise ValueError(mismatch(metric.name, f"labels {metric.labels}", f"{tuple(labels)}"))
        series = Series(metric, tuple(labels[name] for name in metric.labels))
        if series in self._series:
            raise ValueError(mismatch(metric.name, "one series per set of labels", f"{labels} twice"))
        self._series[series] = read

    @property
    def series(self) -> Sequence[Series]:
        """All series, in the order in which they were added."""
        return tuple(self._series)

    def read(self) -> Values:
        """Return the values of all series now."""
        return {series: read() for series, read in self._series.items()}
