from stddaq.wire.std_daq import image_metadata_pb2 as _image_metadata_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResponseCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNKNOWN: _ClassVar[ResponseCode]
    SUCCESS: _ClassVar[ResponseCode]
    FAILURE: _ClassVar[ResponseCode]

class ImageDivision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    by_image_id: _ClassVar[ImageDivision]
    by_arrival: _ClassVar[ImageDivision]
UNKNOWN: ResponseCode
SUCCESS: ResponseCode
FAILURE: ResponseCode
by_image_id: ImageDivision
by_arrival: ImageDivision

class CreateWriterFile(_message.Message):
    __slots__ = ("path", "writer_id", "overwrite", "number_of_writers", "division", "expected_images", "run_id", "source")
    PATH_FIELD_NUMBER: _ClassVar[int]
    WRITER_ID_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_OF_WRITERS_FIELD_NUMBER: _ClassVar[int]
    DIVISION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    path: str
    writer_id: int
    overwrite: bool
    number_of_writers: int
    division: ImageDivision
    expected_images: int
    run_id: str
    source: str
    def __init__(self, path: _Optional[str] = ..., writer_id: _Optional[int] = ..., overwrite: _Optional[bool] = ..., number_of_writers: _Optional[int] = ..., division: _Optional[_Union[ImageDivision, str]] = ..., expected_images: _Optional[int] = ..., run_id: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class RecordImage(_message.Message):
    __slots__ = ("image_metadata", "restarts")
    IMAGE_METADATA_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    image_metadata: _image_metadata_pb2.ImageMetadata
    restarts: int
    def __init__(self, image_metadata: _Optional[_Union[_image_metadata_pb2.ImageMetadata, _Mapping]] = ..., restarts: _Optional[int] = ...) -> None: ...

class RecordImages(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[RecordImage]
    def __init__(self, images: _Optional[_Iterable[_Union[RecordImage, _Mapping]]] = ...) -> None: ...

class CloseWriterFile(_message.Message):
    __slots__ = ("discard_if_empty",)
    DISCARD_IF_EMPTY_FIELD_NUMBER: _ClassVar[int]
    discard_if_empty: bool
    def __init__(self, discard_if_empty: _Optional[bool] = ...) -> None: ...

class ConfirmLastImage(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateMasterFile(_message.Message):
    __slots__ = ("path", "raw_files", "metadata_file", "account", "overwrite", "nexus", "nxmx")
    PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_FILES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FILE_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    NEXUS_FIELD_NUMBER: _ClassVar[int]
    NXMX_FIELD_NUMBER: _ClassVar[int]
    path: str
    raw_files: _containers.RepeatedScalarFieldContainer[str]
    metadata_file: str
    account: str
    overwrite: bool
    nexus: str
    nxmx: str
    def __init__(self, path: _Optional[str] = ..., raw_files: _Optional[_Iterable[str]] = ..., metadata_file: _Optional[str] = ..., account: _Optional[str] = ..., overwrite: _Optional[bool] = ..., nexus: _Optional[str] = ..., nxmx: _Optional[str] = ...) -> None: ...

class WriterAction(_message.Message):
    __slots__ = ("create_file", "record_image", "close_file", "confirm_last_image", "create_master_file", "record_images", "request")
    CREATE_FILE_FIELD_NUMBER: _ClassVar[int]
    RECORD_IMAGE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FILE_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_LAST_IMAGE_FIELD_NUMBER: _ClassVar[int]
    CREATE_MASTER_FILE_FIELD_NUMBER: _ClassVar[int]
    RECORD_IMAGES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    create_file: CreateWriterFile
    record_image: RecordImage
    close_file: CloseWriterFile
    confirm_last_image: ConfirmLastImage
    create_master_file: CreateMasterFile
    record_images: RecordImages
    request: int
    def __init__(self, create_file: _Optional[_Union[CreateWriterFile, _Mapping]] = ..., record_image: _Optional[_Union[RecordImage, _Mapping]] = ..., close_file: _Optional[_Union[CloseWriterFile, _Mapping]] = ..., confirm_last_image: _Optional[_Union[ConfirmLastImage, _Mapping]] = ..., create_master_file: _Optional[_Union[CreateMasterFile, _Mapping]] = ..., record_images: _Optional[_Union[RecordImages, _Mapping]] = ..., request: _Optional[int] = ...) -> None: ...

class WriterProgress(_message.Message):
    __slots__ = ("n_written", "n_overwritten", "n_failed", "overwritten_ids", "failed_ids", "failure")
    N_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    N_OVERWRITTEN_FIELD_NUMBER: _ClassVar[int]
    N_FAILED_FIELD_NUMBER: _ClassVar[int]
    OVERWRITTEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FAILED_IDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    n_written: int
    n_overwritten: int
    n_failed: int
    overwritten_ids: _containers.RepeatedScalarFieldContainer[int]
    failed_ids: _containers.RepeatedScalarFieldContainer[int]
    failure: str
    def __init__(self, n_written: _Optional[int] = ..., n_overwritten: _Optional[int] = ..., n_failed: _Optional[int] = ..., overwritten_ids: _Optional[_Iterable[int]] = ..., failed_ids: _Optional[_Iterable[int]] = ..., failure: _Optional[str] = ...) -> None: ...

class WriterResponse(_message.Message):
    __slots__ = ("code", "reason", "request", "progress", "run_id", "restarting", "takes_record_images")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RESTARTING_FIELD_NUMBER: _ClassVar[int]
    TAKES_RECORD_IMAGES_FIELD_NUMBER: _ClassVar[int]
    code: ResponseCode
    reason: str
    request: int
    progress: WriterProgress
    run_id: str
    restarting: bool
    takes_record_images: bool
    def __init__(self, code: _Optional[_Union[ResponseCode, str]] = ..., reason: _Optional[str] = ..., request: _Optional[int] = ..., progress: _Optional[_Union[WriterProgress, _Mapping]] = ..., run_id: _Optional[str] = ..., restarting: _Optional[bool] = ..., takes_record_images: _Optional[bool] = ...) -> None: ...
