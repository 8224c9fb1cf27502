"""Data sets and uploads of images."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from shared.schemas.fields import ImageName


class NewDataSet(BaseModel):
    """The JSON body of `POST /datasets`."""

    model_config = ConfigDict(extra="forbid")

    name: ImageName = Field(description="display name")


class OddFile(BaseModel):
    """A file that was rejected, and why."""

    name: str
    reason: str


class DataSetImage(BaseModel):
    """An image of a data set."""

    name: str = Field(description="its path in the uploaded folder or archive")
    sha256: str


class DataSet(BaseModel):
    """A named collection of images."""

    id: str
    name: str
    created_at: datetime
    public: bool = Field(description="whether everybody may use it")
    mine: bool = Field(description="whether it is yours: only its owner may add to it and delete it")
    images: int = Field(description="number of different images")
    refused: int = Field(description="number of rejected files")
    odd: list[OddFile] = Field(description="the first hundred rejected files")
    links: dict[str, str]

    def under(self, root: str) -> Self:
        """The data set with its URLs under this path."""
        return self.model_copy(update={"links": {name: root + path for name, path in self.links.items()}})


class AddedImages(BaseModel):
    """The result of an upload."""

    added: list[DataSetImage]
    odd: list[OddFile] = Field(description="rejected files of this upload")
    dataset: DataSet


class DataSetImages(BaseModel):
    """Images of a data set, in the order in which they were added."""

    images: list[DataSetImage]
    next_cursor: str | None = Field(description="cursor of the next page; null on the last page")
