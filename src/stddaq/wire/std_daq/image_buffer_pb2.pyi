from stddaq.wire.std_daq import image_metadata_pb2 as _image_metadata_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BufferedMetadata(_message.Message):
    __slots__ = ("metadata", "offset")
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    metadata: _image_metadata_pb2.ImageMetadata
    offset: int
    def __init__(self, metadata: _Optional[_Union[_image_metadata_pb2.ImageMetadata, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class RequestNextImage(_message.Message):
    __slots__ = ("image_id", "new_request")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_REQUEST_FIELD_NUMBER: _ClassVar[int]
    image_id: int
    new_request: bool
    def __init__(self, image_id: _Optional[int] = ..., new_request: _Optional[bool] = ...) -> None: ...

class NoImageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AckResponse(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: int
    def __init__(self, image_id: _Optional[int] = ...) -> None: ...

class NextImageResponse(_message.Message):
    __slots__ = ("no_image", "ack")
    NO_IMAGE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    no_image: NoImageResponse
    ack: AckResponse
    def __init__(self, no_image: _Optional[_Union[NoImageResponse, _Mapping]] = ..., ack: _Optional[_Union[AckResponse, _Mapping]] = ...) -> None: ...
