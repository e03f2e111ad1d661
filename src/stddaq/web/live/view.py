"""What a browser has chosen to see, from the messages that it sends."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stddaq.text import mismatch, shown
from stddaq.validation import explain
from stddaq.web.live.session import SessionError
from stddaq.wire.preview_requests import WHOLE, Area, CodecName, ReducerName, Region, RegionKind, View

MAX_REGIONS = 8
# Areas are enlarged to multiples of this, so that browsers that show nearly the same share one.
_GRANULARITY = 128


class RegionSetting(BaseModel):
    """A region as the browser names it: `at` is x, y, width, height."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: int = Field(ge=0, lt=2**31)
    kind: RegionKind = "box"
    at: list[int] = Field(min_length=4, max_length=4)


class Settings(BaseModel):
    """The object `set` of a message. A key that is absent stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reducer: ReducerName = "mean"
    codec: CodecName = "lz4"
    view: list[int] | None = Field(default=None, min_length=4, max_length=4)
    regions: list[RegionSetting] = Field(default=[], max_length=MAX_REGIONS)
    max_hz: float = Field(default=100, ge=0.1, le=100)


class Choice:
    """The choices of one browser. `shape`: height and width of the images."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self.settings = Settings()
        self.view = View()
        self.regions: dict[int, Region] = {}

    def change(self, content: Any) -> None:
        """Take over a `set`. Raise `SessionError`, and change nothing."""
        try:
            new = Settings.model_validate(content)
        except ValidationError as error:
            raise SessionError("invalid_value", explain(error.errors()[0], "set")) from error
        settings = self.settings.model_copy(update={key: getattr(new, key) for key in new.model_fields_set})
        regions = {setting.id: Region(setting.kind, self._area(setting.at)) for setting in settings.regions}
        area = WHOLE if settings.view is None else self._enlarged(self._area(settings.view))
        self.settings, self.regions = settings, regions
        self.view = View(settings.reducer, settings.codec, area)

    def _area(self, numbers: list[int]) -> Area:
        x, y, width, height = numbers
        area = Area(x, y, width, height)
        if min(numbers) < 0 or not area.is_inside(self._shape):
            expected = f"a part of {self._shape[1]} x {self._shape[0]} pixels"
            raise SessionError("invalid_value", mismatch("area", expected, shown(numbers)))
        return area

    def _enlarged(self, area: Area) -> Area:
        left, top = (start // _GRANULARITY * _GRANULARITY for start in (area.x, area.y))
        right, bottom = (
            min(-(-end // _GRANULARITY) * _GRANULARITY, limit)
            for end, limit in zip((area.x + area.width, area.y + area.height), self._shape[::-1], strict=True)
        )
        enlarged = Area(left, top, right - left, bottom - top)
        return WHOLE if (enlarged.height, enlarged.width) == self._shape else enlarged
