"""Archives: what is taken out of them, and what is not, with the reason."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO

import pytest

from shared import archives
from shared.archives import Member, Odd, members
from shared.errors import UnsupportedImage

Fill = Callable[[zipfile.ZipFile], object]


def zipped(*fill: Fill) -> BytesIO:
    """A ZIP archive."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in fill:
            one(archive)
    file.seek(0)
    return file


def tarred(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> BytesIO:
    """A tar archive."""
    file = BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for info, data in entries:
            info.size = len(data) if info.isfile() else 0
            archive.addfile(info, BytesIO(data))
    file.seek(0)
    return file


def reported(file: BytesIO, most_bytes: int = 1000) -> dict[str, str]:
    """By name: `taken`, or why not."""
    return {one.name: "taken" if isinstance(one, Member) else one.reason for one in members(file, most_bytes)}


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """An entry of a tar."""
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_are_read_however_they_are_compressed(mode: str) -> None:
    """In their order, without folders and what systems leave behind."""
    file = tarred(
        (info("b", tarfile.DIRTYPE), b""),
        (info("b/two.png"), b"2"),
        (info("a/one.png"), b"1"),
        (info("b/._two.png"), b"x"),
        (info("b/.DS_Store"), b"x"),
        mode=mode,
    )
    assert list(members(file, 10)) == [Member("b/two.png", b"2"), Member("a/one.png", b"1")]


def test_links_devices_and_ways_out_are_refused() -> None:
    """Each by name; the rest goes on."""
    file = tarred(
        (info("../../etc/passwd"), b"1"),
        (info("/elsewhere/a.png"), b"1"),
        (info("soft.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (info("hard.png", tarfile.LNKTYPE, "a.png"), b""),
        (info("pipe", tarfile.FIFOTYPE), b""),
        (info("good.png"), b"1"),
    )
    found = reported(file)
    assert found.pop("good.png") == "taken"
    assert [reason.split(" ")[0] for reason in found.values()] == ["its", "its", "a", "a", "not"]

    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    names = ("../a.png", "a/../../b.png", "C:\\windows\\c.png", "ok\\d.png")
    found = reported(zipped(lambda one: one.writestr(link, "/etc/passwd"), *(_file(name) for name in names)))
    assert found["link.png"].startswith("a link")
    assert [found[name.replace("\\", "/")][:3] for name in names] == ["its", "its", "its", "tak"]


def _file(name: str, data: bytes = b"1") -> Fill:
    return lambda archive: archive.writestr(name, data)


def test_a_bomb_is_not_unpacked() -> None:
    """Neither what says its size, nor what lies about it; nor archives in archives."""
    file = zipped(_file("large.png", b"\0" * 5_000_000), _file("small.png"), _file("inner.zip", zipped().getvalue()))
    found = reported(file)
    assert found["large.png"] == "larger than the 0.001 MB that an image may have"
    assert found["small.png"] == "taken"
    assert found["inner.zip"].startswith("a ZIP archive inside an archive")

    data = bytearray(zipped(_file("liar.png", b"\0" * 100_000)).getvalue())
    size = (100_000).to_bytes(4, "little")
    assert data.count(size) == 2
    lying = BytesIO(bytes(data.replace(size, (10).to_bytes(4, "little"))))
    assert reported(lying)["liar.png"] != "taken"


def test_too_many_files_in_an_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is left out and reported."""
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    found = list(members(zipped(*(_file(f"{number}.png") for number in range(9))), 10))
    assert len(found) == 4
    assert isinstance(found[-1], Odd)
    assert found[-1].reason.startswith("the archive has more than 3 files")


def test_a_damaged_file_is_odd_and_the_others_are_taken() -> None:
    """5,000 broken ones among 10,000, too."""
    data = bytearray(zipped(*(_file(f"{number}.png", bytes(range(200))) for number in range(3))).getvalue())
    second = data.find(b"1.png") + 20
    data[second : second + 40] = b"\xff" * 40
    found = reported(BytesIO(bytes(data)))
    assert [found[name] == "taken" for name in ("0.png", "1.png", "2.png")] == [True, False, True]
    assert found["1.png"].startswith("damaged in the archive")


@pytest.mark.parametrize("cut", [1536, 1636, 2600])
def test_a_tar_that_is_cut_off_gives_what_it_has(cut: int) -> None:
    """And says where it ends: between two files, in a header, in a file."""
    whole = tarred(*((info(f"{number}.png"), b"1" * 600) for number in range(3))).getvalue()
    found = list(members(BytesIO(whole[:cut]), 1000))
    assert found[0] == Member("0.png", b"1" * 600)
    assert isinstance(found[-1], Odd)
    assert found[-1].reason.startswith("the archive is damaged or truncated here")


def test_a_damaged_header_is_no_end() -> None:
    """What comes behind it is not left out without a word."""
    data = bytearray(tarred(*((info(f"{number}.png"), b"1" * 600) for number in range(3))).getvalue())
    data[1536 + 10] ^= 1
    *_, last = members(BytesIO(bytes(data)), 1000)
    assert isinstance(last, Odd)


def test_names_in_any_coding_can_be_shown() -> None:
    """UTF-8 that does not say so, code page 437, decomposed letters, control characters, bytes that are no text."""
    plain = zipped(_file("katze.png")).getvalue()
    utf8 = BytesIO(plain.replace(b"katze.png", "é犬.png"[:5].encode()[:9].ljust(9, b"x")))
    assert next(iter(reported(utf8))).startswith("é犬")
    page = BytesIO(plain.replace(b"katze.png", b"m\x84use.png"))
    assert list(reported(page)) == ["mäuse.png"]
    assert list(reported(zipped(_file("e\N{COMBINING ACUTE ACCENT}\n.png")))) == ["é\N{REPLACEMENT CHARACTER}.png"]
    odd = tarred((info("\udcff.png"), b"1"))
    assert list(reported(odd)) == ["\N{REPLACEMENT CHARACTER}.png"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an archive"),
        (b"hello", "not an archive"),
        (b"PK\3\4 and nothing else", "ZIP archive cannot be read"),
        (b"\x1f\x8bnothing", "tar archive cannot be read"),
        (b"Rar!\x1a\x07\x01", "a RAR archive; ZIP and tar"),
    ],
)
def test_other_files_are_rejected(data: bytes, words: str) -> None:
    """With what is taken."""
    with pytest.raises(UnsupportedImage, match=words):
        list(members(BytesIO(data), 10))


def test_an_encrypted_file_is_rejected() -> None:
    """The file is odd."""
    data = bytearray(zipped(_file("secret.png")).getvalue())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(mark) + at] |= 1
    assert reported(BytesIO(bytes(data))) == {"secret.png": "encrypted; only archives without a password are accepted"}
