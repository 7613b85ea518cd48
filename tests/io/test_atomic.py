"""A write happens wholly or not at all."""

import errno

import pytest

from covector.errors import BadRequest
from covector.io.atomic import written, written_folder


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def write_half(write, path, error=None, **options):
    """Write through `write`, then let the block fail with `error`."""
    with write(path, **options) as beside:
        (beside / "v" if beside.is_dir() else beside).write_text("half")
        if error is not None:
            raise error


def test_a_file_appears_when_the_block_is_done(tmp_path):
    with written(tmp_path / "a.json") as beside:
        beside.write_text("new")
        assert beside.parent == tmp_path
        assert not (tmp_path / "a.json").exists()
    assert (tmp_path / "a.json").read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with written(tmp_path / "a.json") as beside:
        beside.write_text("new")
        assert (tmp_path / "a.json").read_text() == "old"
    assert (tmp_path / "a.json").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(error):
        write_half(written, tmp_path / "a.json", error())
    assert (tmp_path / "a.json").read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "given").write_text("given")
    (tmp_path / "link").symlink_to("given")
    with written(tmp_path / "link") as beside:
        beside.write_text("new")
    assert (tmp_path / "given").read_text() == "given"
    assert (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()


def test_a_folder_appears_when_the_block_is_done(tmp_path):
    with written_folder(tmp_path / "atlas") as beside:
        (beside / "sub").mkdir()
        (beside / "sub" / "v").write_text("1")
        assert not (tmp_path / "atlas").exists()
    assert (tmp_path / "atlas" / "sub" / "v").read_text() == "1"
    assert names(tmp_path) == ["atlas"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "v").write_text("old")
    with pytest.raises(ValueError, match="stop"):
        write_half(written_folder, tmp_path / "atlas", ValueError("stop"), replace=True)
    assert (tmp_path / "atlas" / "v").read_text() == "old"
    assert names(tmp_path) == ["atlas"]


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path):
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "old").write_text("old")
    with written_folder(tmp_path / "atlas", replace=True) as beside:
        (beside / "new").write_text("new")
    assert names(tmp_path / "atlas") == ["new"]
    assert names(tmp_path) == ["atlas"]


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "v").write_text("old")
    rename = type(tmp_path).rename

    def refuse_the_second(path, target):
        if target == tmp_path / "atlas" and (path / "v").read_text() == "half":
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", refuse_the_second)
    with pytest.raises(BadRequest, match="the system says 'Permission denied'; nothing was changed"):
        write_half(written_folder, tmp_path / "atlas", replace=True)
    assert (tmp_path / "atlas" / "v").read_text() == "old"
    assert names(tmp_path) == ["atlas"]


def test_a_folder_with_content_is_not_replaced_unasked(tmp_path):
    (tmp_path / "home").mkdir()
    with written_folder(tmp_path / "home") as beside:  # empty: nothing can be lost
        (beside / "v").write_text("1")
    with pytest.raises(BadRequest, match="no such folder or an empty one, found a folder with 1 entries; choose"):
        write_half(written_folder, tmp_path / "home")
    with pytest.raises(BadRequest, match="found a file"):
        write_half(written_folder, tmp_path / "home" / "v", replace=True)
    assert names(tmp_path / "home") == ["v"]


@pytest.mark.parametrize("write", [written, written_folder])
def test_the_folder_around_must_exist(tmp_path, write):
    with pytest.raises(BadRequest, match=r"expected a .* in an existing folder, .*nowhere is none; create"):
        write_half(write, tmp_path / "nowhere" / "a")


def test_a_full_disk_is_told_in_one_line(tmp_path):
    with pytest.raises(BadRequest, match="the system says 'No space left on device'; nothing was changed"):
        write_half(written, tmp_path / "a", OSError(errno.ENOSPC, "No space left on device"))
    assert names(tmp_path) == []


def test_an_error_of_the_block_is_not_dressed_up(tmp_path):
    with pytest.raises(FileNotFoundError, match="another"):
        write_half(written, tmp_path / "a", FileNotFoundError(errno.ENOENT, "No such file", "another"))
    assert names(tmp_path) == []
