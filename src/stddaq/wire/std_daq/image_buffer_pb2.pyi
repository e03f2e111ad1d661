from stddaq.wire.std_daq import image_metadata_pb2 as _image_metadata_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BufferedMetadata(_message.Message):
    __slots__ = ("metadata", "offset", "checksum")
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    metadata: _image_metadata_pb2.ImageMetadata
    offset: int
    checksum: int
    def __init__(self, metadata: _Optional[_Union[_image_metadata_pb2.ImageMetadata, _Mapping]] = ..., offset: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class RequestNextImage(_message.Message):
    __slots__ = ("image_id", "new_request", "last_image_id", "driver")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_REQUEST_FIELD_NUMBER: _ClassVar[int]
    LAST_IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    image_id: int
    new_request: bool
    last_image_id: int
    driver: int
    def __init__(self, image_id: _Optional[int] = ..., new_request: _Optional[bool] = ..., last_image_id: _Optional[int] = ..., driver: _Optional[int] = ...) -> None: ...

class NoImageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AckResponse(_message.Message):
    __slots__ = ("image_id", "metadata")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    image_id: int
    metadata: _image_metadata_pb2.ImageMetadata
    def __init__(self, image_id: _Optional[int] = ..., metadata: _Optional[_Union[_image_metadata_pb2.ImageMetadata, _Mapping]] = ...) -> None: ...

class FailureResponse(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class SearchingResponse(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: int
    def __init__(self, image_id: _Optional[int] = ...) -> None: ...

class NextImageResponse(_message.Message):
    __slots__ = ("no_image", "ack", "failure", "searching", "n_skipped", "n_damaged", "newest_image_id")
    NO_IMAGE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SEARCHING_FIELD_NUMBER: _ClassVar[int]
    N_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    N_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    NEWEST_IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    no_image: NoImageResponse
    ack: AckResponse
    failure: FailureResponse
    searching: SearchingResponse
    n_skipped: int
    n_damaged: int
    newest_image_id: int
    def __init__(self, no_image: _Optional[_Union[NoImageResponse, _Mapping]] = ..., ack: _Optional[_Union[AckResponse, _Mapping]] = ..., failure: _Optional[_Union[FailureResponse, _Mapping]] = ..., searching: _Optional[_Union[SearchingResponse, _Mapping]] = ..., n_skipped: _Optional[int] = ..., n_damaged: _Optional[int] = ..., newest_image_id: _Optional[int] = ...) -> None: ...
