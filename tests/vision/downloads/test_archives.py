"""Archives read without their tools: what went in comes out, and broken ones are named."""

import tarfile

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.downloads.archives import member, read_members
from tests.builders.small_archives import deb_of, npm_of, zip_of

MEMBERS = {"folder/a.bin": bytes(range(251)) * 7, "folder/b.txt": b"b", "other/c.txt": b""}
KINDS = {
    "wheel": lambda path: zip_of(path, MEMBERS),
    "npm": lambda path: npm_of(path, MEMBERS),
    "deb xz": lambda path: deb_of(path, MEMBERS, "xz"),
    "deb gz": lambda path: deb_of(path, MEMBERS, "gz"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_members_come_out_as_they_went_in(tmp_path, kind):
    archive = KINDS[kind](tmp_path / "archive")
    assert read_members(archive, lambda name: True) == MEMBERS
    some = read_members(archive, lambda name: name.startswith("folder/"))
    assert list(some) == ["folder/a.bin", "folder/b.txt"]


def test_what_is_no_file_is_left_out(tmp_path):
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("folder/link", tarfile.SYMTYPE)):
            item = tarfile.TarInfo(name)
            item.type, item.linkname = kind, "/etc/hostname"
            archive.addfile(item)
    assert read_members(tmp_path / "archive", lambda name: True) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_a_truncated_archive_is_named(tmp_path, kind, share):
    archive = KINDS[kind](tmp_path / "archive")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"archive cannot be read as an archive .*get a whole one"):
        read_members(archive, lambda name: True)


def test_a_damaged_member_is_named(tmp_path):
    archive = KINDS["wheel"](tmp_path / "archive")
    content = bytearray(archive.read_bytes())
    content[60:70] = bytes(255 - byte for byte in content[60:70])
    archive.write_bytes(bytes(content))
    with pytest.raises(InputError, match="cannot be read as an archive"):
        read_members(archive, lambda name: True)


def test_other_files_are_no_archives(tmp_path):
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(InputError, match="cannot be read as an archive"):
        read_members(tmp_path / "text", lambda name: True)
    with pytest.raises(InputError, match="does not exist"):
        read_members(tmp_path / "absent", lambda name: True)
    with pytest.raises(InputError, match="archive lacks x: get"):
        member({"y": b""}, "x", "archive")


def test_zstd_is_named(tmp_path):
    """A data.tar.zst that this Python cannot read; from 3.14 on it could, but these bytes are none."""
    content = b"\x28\xb5\x2f\xfd not really"
    header = f"{'data.tar.zst':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode("ascii")
    (tmp_path / "a.deb").write_bytes(b"!<arch>\n" + header + content)
    with pytest.raises(InputError, match=r"compressed by zstd, which needs Python 3.14"):
        read_members(tmp_path / "a.deb", lambda name: True)
