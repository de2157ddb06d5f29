"""model/files.py: whole or not at all, links followed, devices left alone, permissions as of any other file."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from codeclm.model.files import (
    check_absent,
    check_file,
    file_sha256,
    readable,
    whole_file,
    whole_folder,
    write_whole,
)


def test_a_file_appears_when_it_is_whole_and_its_folders_with_it(tmp_path: Path):
    path = tmp_path / "new/deeper/a.bin"
    with whole_file(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc" and [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_an_error_leaves_what_was_there_and_nothing_new(tmp_path: Path):
    (tmp_path / "a").write_text("before")
    for path in (tmp_path / "a", tmp_path / "new/deeper/b"):
        with pytest.raises(KeyError), whole_file(path) as file:
            file.write(b"half")
            raise KeyError("what comes between")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "before"


def test_a_killed_process_leaves_what_was_there(tmp_path: Path):
    (tmp_path / "a").write_text("before")
    code = "import os, sys; from codeclm.model.files import whole_file\n"
    code += "with whole_file(sys.argv[1]) as file: file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")]).returncode == -9
    assert (tmp_path / "a").read_text() == "before"


def test_a_link_is_followed_not_replaced(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "real/a")
    (tmp_path / "dangling").symlink_to(tmp_path / "real/b")
    for name, target in (("link", "a"), ("dangling", "b")):
        write_whole(tmp_path / name, "after")
        assert (tmp_path / name).is_symlink() and (tmp_path / "real" / target).read_text() == "after"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop: cannot be written"):
        write_whole(tmp_path / "loop", "after")
    assert (tmp_path / "loop").is_symlink()


def test_a_device_is_written_through_and_stays_one(tmp_path: Path):
    node = tmp_path / "null"
    try:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # a /dev/null of our own
        node.write_bytes(b"")
    except OSError:
        node = Path("/dev/null")
        if os.access("/dev", os.W_OK):
            pytest.skip("makes no devices, and could break /dev/null")
    write_whole(node, b"gone")
    assert stat.S_ISCHR(node.stat().st_mode)


def test_a_pipe_gets_the_bytes(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", b"abc")
    reader.join(10)
    assert heard == [b"abc"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_in_one_line_with_the_file(tmp_path: Path):
    with pytest.raises(OSError, match=r"^/dev/full: cannot be written \(No space left on device\)$"):
        write_whole(Path("/dev/full"), b"abc")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"below/a: cannot be written \(Not a directory\)"):
        write_whole(tmp_path / "file/below/a", b"abc")


def test_errors_of_others_keep_their_own_words(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "a"):
        Path("/absent/b").read_bytes()
    assert caught.value.filename == "/absent/b"
    with pytest.raises(ChildProcessError, match="^a worker died$"), whole_file(tmp_path / "a"):
        raise ChildProcessError("a worker died")


def test_a_folder_and_a_dash_are_refused(tmp_path: Path):
    for refuse in (lambda path: write_whole(path, b""), lambda path: check_file(Path(path))):
        with pytest.raises(OSError, match="is a folder; give the name of a file"):
            refuse(tmp_path)
        with pytest.raises(OSError, match="standard output"):
            refuse("-")
    assert not Path("-").exists()


def test_new_files_can_be_read_by_whoever_the_umask_allows(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", b"")
        with whole_folder(tmp_path / "folder") as folder:
            descriptor = os.open(folder / "private", os.O_CREAT | os.O_WRONLY, 0o600)  # as safetensors makes files
            os.close(descriptor)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "folder/private"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_folder_appears_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "new/model"
    for content in ("first", "second"):
        with pytest.raises(KeyError), whole_folder(path, replace=True) as folder:
            (folder / "half").write_text("half")
            raise KeyError("what comes between")
        with whole_folder(path, replace=True) as folder:
            (folder / "sub").mkdir()
            (folder / "sub/a").write_text(content)
        assert [p.name for p in path.parent.iterdir()] == ["model"]
        assert [p.name for p in path.iterdir()] == ["sub"] and (path / "sub/a").read_text() == content
    for refused in (lambda: whole_folder(path).__enter__(), lambda: check_absent(path)):
        with pytest.raises(FileExistsError, match="exists already; give a new folder"):
            refused()
    with pytest.raises(KeyError), whole_folder(tmp_path / "other/deeper"):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="is a file, not a folder"), whole_folder(tmp_path / "file", replace=True):
        pass


def test_a_link_to_a_folder_is_followed(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_folder(tmp_path / "link", replace=True) as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/a").read_text() == "a"


def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path):
    assert readable(os.fsdecode(b"caf\xe9/\xc3\xa9.wav")) == "caf\\xe9/é.wav"
    path = tmp_path / os.fsdecode(b"caf\xe9")
    write_whole(path, "a")
    assert path.read_text() == "a" and file_sha256(path)[:8] == "ca978112"
    with pytest.raises(OSError) as caught:
        write_whole(path / "below", "a")
    str(caught.value).encode()
