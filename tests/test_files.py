"""Files are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vitune.errors import OutputError
from vitune.files import (
    atomic_folder,
    atomic_path,
    check_folder,
    check_new_folder,
    check_output,
    is_part,
    is_stream,
    recover_folder,
    sweep,
    write_atomic,
    write_output,
)
from vitune.processes import Writer
from vitune.tensors import disk_errors


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    with pytest.raises(OSError, match="full"), atomic_path(target) as aside:
        aside.write_text("half of the n")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    """Not the half-written one beside it, which nobody knows of."""
    new = tmp_path / "new"
    with pytest.raises(OSError, match="full") as caught, atomic_path(new) as aside:
        raise OSError(28, "disk full", str(aside))
    assert caught.value.filename == str(new)
    with pytest.raises(OSError, match="full") as caught, atomic_folder(new) as aside:
        raise OSError(28, "disk full", str(aside / "inner"))
    assert caught.value.filename == str(new / "inner")
    with pytest.raises(OSError, match="full") as caught, atomic_path(new):
        raise OSError(28, "disk full")  # of a write, which does not say where
    assert caught.value.filename == str(new)
    with pytest.raises(FileNotFoundError) as caught, atomic_path(new):
        (tmp_path / "absent").read_text()
    assert Path(caught.value.filename) == tmp_path / "absent"


def test_a_write_that_safetensors_could_not_make_is_told_as_the_system_does() -> None:
    for text, number in (("I/O error: File too large (os error 27)", 27), ("odd", errno.EIO)):
        with pytest.raises(OSError) as caught, disk_errors(Path("a.safetensors")):
            raise SafetensorError(f"Error while serializing: {text}")
        assert (caught.value.errno, caught.value.filename) == (number, "a.safetensors")
    assert caught.value.strerror == "Error while serializing: odd"


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with atomic_folder(target) as aside:
        (aside / "x").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_folder(target) as aside:
        (aside / "x").write_text("new")
        raise OSError("disk full")
    assert (target / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_between_the_renames_is_mended(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "x").write_text("old")
    target.replace(tmp_path / ".adapter.previous")
    recover_folder(target)
    assert (target / "x").read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from vitune.files import atomic_folder
target = Path(sys.argv[1])
with atomic_folder(target) as aside:
    (aside / "x").write_text("new, half wr")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_while_saving_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with atomic_folder(target) as aside:
        (aside / "x").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -9
    assert (target / "x").read_text() == "old"
    with atomic_folder(target) as aside:
        (aside / "x").write_text("newer")
    assert (target / "x").read_text() == "newer"


@pytest.fixture
def umask_027() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_files_have_the_permissions_of_the_umask(tmp_path: Path, umask_027: None) -> None:
    write_atomic(tmp_path / "a", "x")
    assert mode(tmp_path / "a") == 0o640
    with atomic_path(tmp_path / "b") as aside:  # safetensors puts a file of mode 0600 in its place
        save_file({"x": torch.zeros(1)}, aside)
    assert mode(tmp_path / "b") == 0o640
    with atomic_folder(tmp_path / "c") as folder:
        save_file({"x": torch.zeros(1)}, folder / "t")
        (folder / "inner").mkdir()
        save_file({"x": torch.zeros(1)}, folder / "inner" / "t")
    assert mode(tmp_path / "c") == 0o750
    assert mode(tmp_path / "c" / "t") == mode(tmp_path / "c" / "inner" / "t") == 0o640


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o600)
    write_atomic(tmp_path / "a", "new")
    assert mode(tmp_path / "a") == 0o600 and (tmp_path / "a").read_text() == "new"


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "file").symlink_to("far/a.txt")
    write_atomic(tmp_path / "file", "x")
    assert (tmp_path / "file").is_symlink() and (tmp_path / "far" / "a.txt").read_text() == "x"
    (tmp_path / "folder").symlink_to("far", target_is_directory=True)
    with atomic_folder(tmp_path / "folder") as aside:
        (aside / "b.txt").write_text("y")
    assert (tmp_path / "folder").is_symlink() and (tmp_path / "far" / "b.txt").read_text() == "y"


def test_parts_of_dead_writers_are_swept_and_no_others(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = Writer.here().host
    dead, live, elsewhere, other = (
        tmp_path / f".{name}.{writer}-{pid}-0123abcd.part"
        for name, writer, pid in (
            ("a.txt", host, child.pid),
            ("a.txt", host, os.getpid()),
            ("a.txt", "00000000", child.pid),
            ("b.txt", host, child.pid),
        )
    )
    theirs = tmp_path / ".a.txt.part"
    for path in (dead, live, elsewhere, other, theirs):
        path.write_text("half")
    folder = tmp_path / f".a.txt.{host}-{child.pid}-01230123.part"
    (folder / "inner").mkdir(parents=True)
    assert is_part(dead.name) and not is_part(theirs.name)
    write_atomic(tmp_path / "a.txt", "x")
    assert not dead.exists() and not folder.exists()
    assert live.exists() and elsewhere.exists() and other.exists() and theirs.exists()
    sweep(tmp_path)
    assert not other.exists() and live.exists() and elsewhere.exists() and theirs.exists()


def test_a_reader_between_the_two_renames_does_no_harm(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with atomic_folder(target) as aside:
        (aside / "x").write_text("old")
    real = Path.replace

    def replace(self: Path, to: Path) -> Path:
        moved = real(self, to)
        if to.name == ".adapter.previous" and not replaced:
            replaced.append(to)
            recover_folder(target)  # as `vitune predict` does
        return moved

    replaced: list[Path] = []
    with pytest.MonkeyPatch.context() as patch, atomic_folder(target) as aside:
        (aside / "x").write_text("new")
        patch.setattr(Path, "replace", replace)
    assert replaced and (target / "x").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_output_never_replaces_a_file_unasked(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("precious")
    for call in (check_output, lambda path: write_output(path, "x")):
        with pytest.raises(
            OutputError, match=r"mine\.csv', which exists, expected a new f.*--force"
        ):
            call(mine)
        with pytest.raises(OutputError, match=r"got the folder .*, expected a file name such as"):
            call(tmp_path)
    link = tmp_path / "link.csv"
    link.symlink_to("mine.csv")
    with pytest.raises(OutputError, match="which exists"):
        write_output(link, "x")
    assert mine.read_text() == "precious"
    write_output(link, "x", force=True)
    assert link.is_symlink() and mine.read_text() == "x"
    write_output(tmp_path / "deep" / "new.csv", "y")
    assert (tmp_path / "deep" / "new.csv").read_text() == "y"


def test_pipes_and_devices_are_written_to_and_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_output(pipe, "through")
    assert reader.communicate()[0] == b"through"
    assert stat.S_ISFIFO(pipe.stat().st_mode) and is_stream(pipe)
    terminal, end = os.openpty()
    device = Path(os.ttyname(end))
    write_output(device, "shown")
    assert os.read(terminal, 10) == b"shown"
    assert stat.S_ISCHR(device.stat().st_mode) and is_stream(device)
    os.close(terminal)
    os.close(end)
    assert not is_stream(tmp_path) and not is_stream(tmp_path / "none")


STDOUT = "from vitune.files import write_output; print('a', flush=True); "
STDOUT += "write_output('/dev/stdout', 'b\\n'); print('c', flush=True)"


def test_standard_output_may_be_a_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", STDOUT], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "a\nb\nc\n"
    assert not list(tmp_path.glob(".*"))


def test_a_full_device_is_told_and_stays_a_device(tmp_path: Path) -> None:
    full = tmp_path / "full"
    try:
        os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # /dev/full, but ours to lose
    except OSError as error:
        pytest.skip(f"needs the right to make a device ({error.strerror})")
    with pytest.raises(OSError, match="No space left"):
        write_output(full, "x")
    assert stat.S_ISCHR(full.stat().st_mode)


def test_folders_that_hold_something_are_refused(tmp_path: Path) -> None:
    check_new_folder(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "nowhere").symlink_to("absent")
    for name in ("full", "full/mine", "nowhere"):
        with pytest.raises(OutputError, match=r"which exists, expected a new folder\. Choose"):
            check_new_folder(tmp_path / name)
        with pytest.raises(OutputError, match=r"expected a new folder.*--force"):
            check_folder(tmp_path / name)
    check_folder(tmp_path / "full", force=True)
    check_folder(tmp_path / "full", marks=("other", "mine"))
    with pytest.raises(OutputError, match="expected a new folder"):
        check_folder(tmp_path / "full" / "mine", force=True)
    with pytest.raises(OutputError, match="expected a new folder"):
        check_folder(tmp_path / "full", marks=("other",))


WRITES = """
import os, signal, sys
from pathlib import Path
from vitune.files import atomic_folder, write_atomic
work, number = Path(sys.argv[1]), int(sys.argv[2])
seen = 0
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")
def watch(event, arguments):
    global seen
    is_write = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if (is_write or event in CHANGES) and str(work) in str(arguments[0]):
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
for number in range(1, 100):
    child = os.fork()
    if child == 0:
        sys.addaudithook(watch)
        seen = 0
        write_atomic(work / "file", "new")
        with atomic_folder(work / "folder") as aside:
            (aside / "x").write_text("new")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    state = [(work / "file").read_text()]
    from vitune.files import recover_folder
    recover_folder(work / "folder")
    state.append((work / "folder" / "x").read_text())
    print(number, *state)
    for name in ("file", "folder/x"):
        (work / name).write_text("old")
    if not os.WIFSIGNALED(status):
        break
"""


def test_a_kill_at_any_change_leaves_old_or_new(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder/x"):
        (tmp_path / name).write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(tmp_path), "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    ends = [line.split()[1:] for line in done.stdout.splitlines()]
    assert len(ends) > 10 and ends[0] == ["old", "old"] and ends[-1] == ["new", "new"]
    assert {word for end in ends for word in end} == {"old", "new"}
    assert ends == sorted(ends, key=lambda end: end.count("new")), "what is new stays new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
